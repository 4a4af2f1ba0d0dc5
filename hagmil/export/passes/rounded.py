"""Emulation of 16-bit arithmetic, to check half-precision graphs on a CPU.

ONNX Runtime's CPU provider has few float16 kernels. It casts the operands of all other operators and removes the casts
between them, so that a half-precision graph computes in float32 throughout: it neither rounds nor overflows, and its
outputs say nothing about a GPU. This pass makes the rounding explicit.

Requires a graph whose values have types (:mod:`hagmil.export.passes.types`). Ensures a float32 graph with the same
inputs and outputs in which every float16 value is rounded to float16 (infinite beyond 65504) and every operator
computes in float32, like the accumulators of tensor cores.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hagmil.export.passes.types import element_types

_EXACT = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Neg", "Relu", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose outputs contain only values of their operands, so that rounding has no effect."""


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 copy of a half-precision graph that rounds every float16 value.

    Args:
        model: the graph; a graph without float16 values is copied unchanged.

    Raises:
        BundleError: the operands of a node have types that do not match.
    """
    types = element_types(model)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_widened(tensor))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        to_half = any(types.get(name) == TensorProto.FLOAT16 for name in node.output)
        _widen_attributes(node)
        nodes.append(node)
        if to_half and node.op_type not in _EXACT:
            nodes += [cast for place in range(len(node.output)) for cast in _round_output(node, place)]
    del graph.node[:]
    graph.node.extend(nodes)
    return twin


def _round_output(node: onnx.NodeProto, place: int) -> list[onnx.NodeProto]:
    """Cast an output of a node to float16 and back; later nodes read the result of the casts."""
    name = node.output[place]
    if not name:
        return []
    node.output[place] = f"{name}/exact"
    return [
        helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT),
    ]


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_widened(attribute.t))
