"""Element types of every value of a graph.

Requires a graph whose operators have shape inference. Ensures that the types of all operands match; does not change the
graph.
"""

from __future__ import annotations

import onnx

from hagmil.errors import BundleError

_SMALL_BYTES = 1024  # such as shapes, whose values shape inference needs


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type (an ``onnx.TensorProto`` number) of every value, by name.

    Raises:
        BundleError: the operands of a node have types that do not match.
    """
    graph = inferred(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    types.update({tensor.name: int(tensor.data_type) for tensor in graph.initializer})
    return types


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph with inferred types and shapes, without large weights.

    Raises:
        BundleError: the operands of a node have types that do not match.
    """
    try:
        return onnx.shape_inference.infer_shapes(_without_weights(model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise BundleError(f"types in the graph do not match: {error}", code="graph_invalid") from error


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with types and shapes of large weights, without values; inference is limited to 2 GB."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.ClearField("raw_data")
    return light
