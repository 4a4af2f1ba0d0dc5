"""Post-training static quantisation of a backbone to int8 for CPUs, calibrated on patches.

Requires a float32 graph of opset 13 or later with the contract's input. Ensures a graph of standard operators with the
same inputs and outputs that computes in int8 between the first and the last matrix product.

1. Infer shapes and fold constants (including batch normalisation into convolutions).
2. Run patches through the graph; the minimum and maximum of every tensor give its scale and zero point (uint8).
3. Quantise weights to int8 with 7 bits and one scale per channel. On CPUs without VNNI, the sum of two products of a
   byte and a 7-bit value fits into the 16-bit accumulator, so that all CPUs compute the same sums.
4. Keep in float32: everything before the first and after the last matrix product (normalisation of pixels, pooling of
   the last feature map), as in half precision; the first matrix product, if requested; and in transformers everything
   that is not a matrix product, because residual sums have outliers that 8 bits cannot represent.
5. Remove unused operator sets and the names of the tools.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hagmil._files import temporary_folder
from hagmil.errors import BundleError
from hagmil.export.graph import opset_of, save
from hagmil.export.passes.strip_metadata import strip_metadata
from hagmil.runtime.sessions.load_onnxruntime import load_onnxruntime
from hagmil.spec import PATCHES

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_BETWEEN_CONVOLUTIONS = ("Add", "Relu", "MaxPool")
_TRANSFORMER_OPERATORS = frozenset({"LayerNormalization", "Softmax", "Attention"})
_MIN_OPSET = 13
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"})

_log = logging.getLogger(__name__)


def write_quantised(
    source: Path, graph: Path, batches: Iterable[NDArray[np.uint8]], *, first_product_fp32: bool = False
) -> int:
    """Quantise a backbone.

    Args:
        source: the float32 graph.
        graph: the file to write.
        batches: calibration patches, uint8 (batch, height, width, 3) each; read one batch at a time.
        first_product_fp32: keep the first matrix product in float32, unless it is the only one.

    Returns:
        The number of calibration patches.

    Raises:
        BundleError: the graph is already quantised, its opset is too old, or it cannot be quantised.
    """
    _check(source)
    reader = _Reader(batches)
    with temporary_folder("int8") as folder:
        prepared, quantised = folder / "prepared.onnx", folder / "quantised.onnx"
        _prepare(source, prepared)  # step 1
        _quantise(prepared, quantised, reader, first_product_fp32)
        model = onnx.load(quantised)
    _clean(model)  # step 5
    save(model, graph)
    return reader.patches


class _Reader:
    """Feeds batches to the calibrator of ONNX Runtime and counts their patches."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(batches)
        self.patches = 0

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the inputs of the next run; None at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        self.patches += len(batch)
        return {PATCHES.name: batch}


def _check(source: Path) -> None:
    model = onnx.load(source, load_external_data=False)
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        raise BundleError("the backbone is already quantised; pass its float32 graph", code="precision")
    if not any(node.op_type in _PRODUCTS for node in model.graph.node):
        raise BundleError("the backbone has no convolution or matrix product to quantise", code="precision")
    if opset_of(model) < _MIN_OPSET:
        raise BundleError(
            f"the backbone has opset {opset_of(model)}, which has no scales per channel; export it with "
            f"opset {_MIN_OPSET} or later",
            code="precision",
        )


def _prepare(source: Path, prepared: Path) -> None:
    """Step 1; also gives every node a name."""
    load_onnxruntime(extra="export")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
    except Exception as error:  # ONNX Runtime and onnx raise many types
        raise BundleError(f"the backbone cannot be prepared for int8: {error}", code="precision") from error
    model = onnx.load(prepared, load_external_data=False)
    for place, node in enumerate(model.graph.node):
        node.name = f"{place}_{node.op_type}"
    onnx.save(model, prepared)


def _quantise(prepared: Path, quantised: Path, reader: _Reader, first_product_fp32: bool) -> None:
    """Steps 2 to 4."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    CalibrationDataReader.register(_Reader)
    nodes = list(onnx.load(prepared, load_external_data=False).graph.node)
    kinds = {node.op_type for node in nodes}
    is_transformer = bool(kinds & _TRANSFORMER_OPERATORS)
    between = () if is_transformer else _BETWEEN_CONVOLUTIONS
    options = {"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)} if is_transformer else {}
    try:
        with _quiet():
            quantize_static(
                prepared,
                quantised,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=[*_PRODUCTS, *between],
                nodes_to_exclude=_outer_nodes(nodes, first_product_fp32),
                use_external_data_format=True,
                extra_options=options,
            )
    except BundleError:
        raise
    except Exception as error:  # the quantiser raises many types
        raise BundleError(f"the backbone cannot be quantised: {error}", code="precision") from error


def _outer_nodes(nodes: list[onnx.NodeProto], first_product_fp32: bool) -> list[str]:
    """Step 4: names of the nodes before the first and after the last quantised product."""
    products = [place for place, node in enumerate(nodes) if node.op_type in _PRODUCTS]
    first = products[1] if first_product_fp32 and len(products) > 1 else products[0]
    return [node.name for place, node in enumerate(nodes) if not first <= place <= products[-1]]


def _clean(model: onnx.ModelProto) -> None:
    """Step 5."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    opsets = [(entry.domain, entry.version) for entry in kept]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in opsets)
    del model.graph.value_info[:]
    strip_metadata(model)
    model.producer_name, model.producer_version = "", ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what the calibrator prints to the log instead of standard output."""
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        if printed.getvalue():
            _log.debug("%s", printed.getvalue().strip())
