"""ONNX graphs held against the contract: names, types, axes, opset, size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hagmil._files import write_bytes
from hagmil.errors import BundleError
from hagmil.spec import DYNAMIC_AXES, TensorSpec

_LARGEST_WEIGHTS_BYTES = 2_000_000_000


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes beside a graph: stack traces, paths of the machine, names of its passes.

    The same weights give the same bytes then, wherever they are exported with the same versions.
    """
    graph = model.graph
    holders: Iterable[Any] = (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    )
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a graph uses."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def axes_of(value: onnx.ValueInfoProto) -> tuple[str | int, ...] | None:
    """The axes of an input or output: a number where fixed, a word where dynamic (empty where unnamed).

    Returns:
        The axes, or None where the graph does not even say how many.
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """The element type of an input or output, as NumPy writes it."""
    code = value.type.tensor_type.elem_type
    return (
        "undefined" if code == onnx.TensorProto.UNDEFINED else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name
    )


def check_contract(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that a graph is valid and that its inputs and outputs are what the contract says.

    Raises:
        BundleError: what differs, or that the graph is larger than one ONNX file can be (2 GB).
    """
    weights_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights_bytes > _LARGEST_WEIGHTS_BYTES:
        raise BundleError(
            f"its weights are {weights_bytes / 1e9:.1f} GB, and one ONNX file holds 2 GB at most",
            code="graph_too_large",
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise BundleError(f"not a valid ONNX graph: {error}", code="graph_invalid") from error
    for what, specs, values in (
        ("input", inputs, model.graph.input),
        ("output", outputs, model.graph.output),
    ):
        names = [value.name for value in values]
        if names != [spec.name for spec in specs]:
            raise BundleError(f"{what}s of the graph are {names}, not {[spec.name for spec in specs]}", code="contract")
        for spec, value in zip(specs, values, strict=True):
            _check_tensor(f"{what} {spec.name}", spec, value)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph with its weights as one file; the same graph always gives the same bytes."""
    write_bytes(path, model.SerializeToString(deterministic=True))


def _check_tensor(what: str, spec: TensorSpec, value: onnx.ValueInfoProto) -> None:
    if dtype_of(value) != spec.dtype:
        raise BundleError(f"{what} is {dtype_of(value)}, not {spec.dtype}", code="contract")
    axes = axes_of(value)
    if axes is None or len(axes) != len(spec.axes):
        raise BundleError(f"{what} has the axes {axes}, not {spec.axes}", code="contract")
    for wanted, given in zip(spec.axes, axes, strict=True):
        if isinstance(wanted, int) or wanted in DYNAMIC_AXES:
            kept = given == wanted
        else:  # a length that the model fixes, under the contract's word for it
            kept = isinstance(given, int) and given >= 1
        if not kept:
            raise BundleError(f"{what}: axis {given!r} stands where the contract has {wanted!r}", code="contract")
