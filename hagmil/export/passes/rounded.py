"""A graph in half precision as a device with 16-bit arithmetic computes it, for a machine that has none.

ONNX Runtime's CPU provider has few kernels in float16. It casts around all others and drops the casts between them, so
that a graph in half precision computes in float32 from end to end there: it neither rounds nor overflows, and proves
nothing of a GPU. This pass makes the rounding explicit.

Requires a graph whose values have types (:mod:`hagmil.export.passes.types`). Ensures a graph in float32, with the same
inputs and outputs, in which every value that was float16 is one that float16 can hold (infinite beyond 65504), and
every operator computes inside in float32, as tensor cores accumulate.
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
"""Operators whose results are of their operands' values; there is nothing to round."""


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 twin of a half-precision graph that rounds wherever the graph would.

    Args:
        model: a graph with inner values in float16; one without any comes back as it is.

    Raises:
        BundleError: types of a node's operands do not fit together.
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
    """Casts to float16 and back behind an output of a node; everything after reads what comes out of them."""
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
