"""Element types of every value of a graph.

Requires a graph whose operators say what they give. Ensures that types fit together from node to node; changes nothing.
"""

from __future__ import annotations

import onnx

from hagmil.errors import BundleError

_SMALL_BYTES = 1024  # shapes and the like, whose values inference needs


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value, by its name, as ``onnx.TensorProto`` numbers them.

    Raises:
        BundleError: types of a node's operands do not fit together.
    """
    graph = inferred(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    types.update({tensor.name: int(tensor.data_type) for tensor in graph.initializer})
    return types


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph without its large weights, in which every value has its type and, where known, its shape.

    Raises:
        BundleError: types of a node's operands do not fit together.
    """
    try:
        return onnx.shape_inference.infer_shapes(_without_weights(model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise BundleError(f"the graph's types do not fit together: {error}", code="graph_invalid") from error


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that knows types and shapes of its weights alone: inference takes no more than 2 GB."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.ClearField("raw_data")
    return light
