"""Post-training static quantisation of a backbone: int8 arithmetic for CPUs, calibrated on real patches.

Requires a float32 graph of opset 13 or later that takes the contract's patches. Ensures a graph of standard operators
with the same inputs and outputs in which what lies between the first and the last matrix product computes in int8.

1. Shapes are inferred and what is constant is folded (batch normalisation into convolutions, where it is left).
2. Patches run through the graph; the least and the largest value of every tensor give its scale and its zero (uint8).
3. Weights become int8 with a scale for each channel, of 7 bits: two products of a byte and 7 bits fit into the 16 bits
   that CPUs without VNNI add them in, so the same sums come out on every CPU.
4. What stands before the first and after the last matrix product stays float32: pixels are normalised, and the last
   feature map is pooled, as in half precision. So does, where that is asked for, the first product itself, which reads
   pixels and not features. So does everything that is no matrix product in a transformer, whose
   residual sums hold outliers that 8 bits cannot.
5. Names of operators that are not used, and of the tools, are removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from hagmil.errors import BundleError
from hagmil.export.graph import opset_of, save
from hagmil.export.passes.strip_metadata import strip_metadata
from hagmil.spec import PATCHES

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_BETWEEN_CONVOLUTIONS = ("Add", "Relu", "MaxPool")
_OF_TRANSFORMERS = frozenset({"LayerNormalization", "Softmax", "Attention"})
_LEAST_OPSET = 13
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"})

_log = logging.getLogger(__name__)


def write_quantised(
    source: Path, graph: Path, batches: Iterable[NDArray[np.uint8]], *, first_product_fp32: bool = False
) -> int:
    """Write the int8 form of a backbone.

    Args:
        source: its float32 graph.
        graph: the file to write.
        batches: patches to calibrate on, uint8 (batch, height, width, 3) each; one is held at a time.
        first_product_fp32: leave the first matrix product in float32, unless it is the only one.

    Returns:
        How many patches it was calibrated on.

    Raises:
        BundleError: the graph is quantised already, too old, or cannot be quantised.
    """
    _check(source)
    reader = _Reader(batches)
    with TemporaryDirectory(prefix="hagmil-int8-") as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        _prepare(source, prepared)  # step 1
        _quantise(prepared, quantised, reader, first_product_fp32)
        model = onnx.load(quantised)
    _clean(model)  # step 5
    save(model, graph)
    return reader.patches


class _Reader:
    """Batches as the calibrator asks for them, counted."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(batches)
        self.patches = 0

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next inputs; None at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        self.patches += len(batch)
        return {PATCHES.name: batch}


def _check(source: Path) -> None:
    model = onnx.load(source, load_external_data=False)
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        raise BundleError("the backbone is quantised already; give its float32 form", code="precision")
    if not any(node.op_type in _PRODUCTS for node in model.graph.node):
        raise BundleError("the backbone holds no matrix product that int8 could speed up", code="precision")
    if opset_of(model) < _LEAST_OPSET:
        raise BundleError(
            f"the backbone is of opset {opset_of(model)}, which has no scale for each channel; export it with "
            f"opset {_LEAST_OPSET} or later",
            code="precision",
        )


def _prepare(source: Path, prepared: Path) -> None:
    """Step 1, and a name for every node."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
    except Exception as error:  # ONNX Runtime and onnx raise many kinds
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
    is_transformer = bool(kinds & _OF_TRANSFORMERS)
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
    except Exception as error:  # the quantiser raises many kinds
        raise BundleError(f"the backbone cannot be quantised: {error}", code="precision") from error


def _outer_nodes(nodes: list[onnx.NodeProto], first_product_fp32: bool) -> list[str]:
    """Step 4: names of the nodes before the first and after the last quantised product, in the graph's order."""
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
    """Keep the calibrator's prints out of a command's output; they go to the log."""
    said = StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        if said.getvalue():
            _log.debug("%s", said.getvalue().strip())
