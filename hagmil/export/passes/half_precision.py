"""Half precision of a finished graph: its insides in 16 bits, its edges as the contract has them.

Requires a valid graph of standard operators without subgraphs. Ensures a valid graph with the same inputs and outputs
whose every inner float is float16, but for operands that an operator wants in float32 (:data:`_ALWAYS_FLOAT32`).

Used for backbones, which arrive as ONNX. A stage is wrapped in torch instead
(:class:`hagmil.export.precision.ReducedPrecision`), where blocks can be told apart.

1. Weights and constants become float16; one that float16 cannot hold is refused.
2. Casts to float32 become casts to float16.
3. A float32 output is computed under another name and cast to float32 at the end, so that it may be used inside too; a
   float32 input is cast once, at the start.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hagmil.errors import BundleError
from hagmil.export.passes.types import element_types

FLOAT16_MAX = 65504.0
_SUFFIX = "/half"
_ALWAYS_FLOAT32 = {"Resize": (1, 2), "QuantizeLinear": (1,), "DequantizeLinear": (1,)}
"""Operands, by operator and place, that keep their type."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that computes in float16.

    Raises:
        BundleError: subgraphs, operators that are not standard ones, or a weight beyond float16's range.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    _refuse_unknown(graph)
    kept = {
        node.input[place]
        for node in graph.node
        for place in _ALWAYS_FLOAT32.get(node.op_type, ())
        if place < len(node.input)
    }
    _convert_weights(graph, kept)  # step 1
    for node in graph.node:
        if kept.isdisjoint(node.output):
            _convert_attributes(node)  # steps 1 and 2
    _cast_edges(graph)  # step 3
    del graph.value_info[:]
    element_types(half)  # fails where types do not fit together
    return half


def _refuse_unknown(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise BundleError(f"operator {node.domain}.{node.op_type} cannot be brought to fp16", code="precision")
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise BundleError(f"operator {node.op_type} holds a subgraph; it cannot be brought to fp16", code="precision")


def _convert_weights(graph: onnx.GraphProto, kept: set[str]) -> None:
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor))


def _half_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FLOAT16_MAX:
        raise BundleError(
            f'weight "{tensor.name}" reaches {largest:.3g}, and fp16 ends at {FLOAT16_MAX:g}', code="precision"
        )
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _convert_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t))
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            single = attribute.name == "value_float"
            values = np.array(attribute.f if single else list(attribute.floats), np.float16)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))


def _cast_edges(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    entries = {v.name for v in graph.input if _is_float(v) and v.name not in weights}
    exits = [value.name for value in graph.output if _is_float(value)]
    inner = {name: name + _SUFFIX for name in (*entries, *exits)}
    for node in graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    before = [helper.make_node("Cast", [name], [inner[name]], to=TensorProto.FLOAT16) for name in sorted(entries)]
    after = [helper.make_node("Cast", [inner[name]], [name], to=TensorProto.FLOAT) for name in exits]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *body, *after])


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)
