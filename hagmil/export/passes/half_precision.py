"""Half precision of a finished graph: its insides in 16 bits, its edges in 32.

Requires a valid graph of standard operators without subgraphs. Ensures a valid graph with the same inputs and outputs
in which every node between the first and the last matrix product computes in float16.

Used for backbones, which arrive as ONNX. A stage is wrapped in torch instead
(:class:`hagmil.export.stage_half_precision.ReducedPrecision`).

1. Inside is a node that is a product, or has one both before and after it. What is not, stays in float32: pixels are
   normalised, and the last feature map is pooled, in float32, which costs next to nothing (docs/numerics.md).
2. Inner nodes read weights in float16; one that float16 cannot hold is refused.
3. A value that goes from an inner node to an outer one, or the other way, is cast on its way, once.
4. Casts to float32 and constants among the inner nodes become float16.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hagmil.errors import BundleError
from hagmil.export.passes.infer_shapes import infer_shapes
from hagmil.export.passes.types import element_types

FLOAT16_MAX = 65504.0
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "Attention"})
_ALWAYS_FLOAT32 = {"Resize": (1, 2), "QuantizeLinear": (1,), "DequantizeLinear": (1,)}
"""Operands, by operator and place, that keep their type."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that computes in float16.

    Raises:
        BundleError: subgraphs, operators that are not standard ones, or a weight beyond float16's range.
    """
    _refuse_unknown(model.graph)
    floats = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inner = _inner_nodes(graph)  # step 1
    given = {name for place, node in enumerate(graph.node) if place in inner for name in node.output}
    rewriter = _Rewriter(weights, floats, given)
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        nodes += rewriter.casts_before(node, to_half=place in inner)
        rewriter.rename(node, to_half=place in inner)
        nodes.append(node)
    nodes += rewriter.casts_to_outputs(value.name for value in graph.output)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in (*weights.values(), *rewriter.new_weights.values()) if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    infer_shapes(half)  # fails where types do not fit together
    return half


class _Rewriter:
    """Steps 2 to 4, node by node in the graph's order.

    Args:
        weights: the graph's weights by their names.
        floats: names of all values and weights in float32.
        given: names of the values that inner nodes give.
    """

    def __init__(self, weights: dict[str, onnx.TensorProto], floats: set[str], given: set[str]) -> None:
        self._weights, self._floats, self._given = weights, floats, given
        self._cast: set[str] = set()
        self.new_weights: dict[str, onnx.TensorProto] = {}

    def casts_before(self, node: onnx.NodeProto, *, to_half: bool) -> list[onnx.NodeProto]:
        """Casts of what a node reads, where they do not stand already."""
        casts = []
        for name in _floating_operands(node):
            crosses = name in self._floats and name not in self._weights and (name in self._given) != to_half
            target = _as_half(name) if to_half else _as_float(name)
            if crosses and target not in self._cast:
                self._cast.add(target)
                source = name if to_half else _as_half(name)
                kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
                casts.append(helper.make_node("Cast", [source], [target], to=kind))
        return casts

    def rename(self, node: onnx.NodeProto, *, to_half: bool) -> None:
        """Let a node read and give values of its own type."""
        operands = set(_floating_operands(node))
        if to_half:
            node.input[:] = [self._half(name) if name in operands else name for name in node.input]
            node.output[:] = [_as_half(name) if name in self._floats else name for name in node.output]
            _convert_attributes(node)
        else:
            node.input[:] = [
                _as_float(name) if name in self._given and name in self._floats else name for name in node.input
            ]

    def casts_to_outputs(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """Casts of the graph's outputs that inner nodes give; an output may so be used inside too."""
        return [
            helper.make_node("Cast", [_as_half(name)], [name], to=TensorProto.FLOAT)
            for name in names
            if name in self._given and name in self._floats
        ]

    def _half(self, name: str) -> str:
        if name not in self._floats:
            return name
        if name in self._weights and name not in self.new_weights:
            self.new_weights[name] = _half_tensor(self._weights[name], _as_half(name))
        return _as_half(name)


def _as_half(name: str) -> str:
    return f"{name}/half"


def _as_float(name: str) -> str:
    return f"{name}/float"


def _floating_operands(node: onnx.NodeProto) -> tuple[str, ...]:
    """What a node reads, but for operands that are float32 whatever the node computes in."""
    fixed = _ALWAYS_FLOAT32.get(node.op_type, ())
    return tuple(name for place, name in enumerate(node.input) if name and place not in fixed)


def _inner_nodes(graph: onnx.GraphProto) -> set[int]:
    """Places of the inner nodes (step 1); nodes stand in an order in which values are given before they are read."""
    after, before = set[str](), set[str]()
    downstream, upstream = set[int](), set[int]()
    for place, node in enumerate(graph.node):
        if node.op_type in _PRODUCTS or not after.isdisjoint(node.input):
            downstream.add(place)
            after.update(node.output)
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type in _PRODUCTS or not before.isdisjoint(node.output):
            upstream.add(place)
            before.update(node.input)
    return downstream & upstream


def _refuse_unknown(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise BundleError(f"operator {node.domain}.{node.op_type} cannot be brought to fp16", code="precision")
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise BundleError(
                f"operator {node.op_type} holds a subgraph; it cannot be brought to fp16", code="precision"
            )


def _half_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FLOAT16_MAX:
        raise BundleError(
            f'weight "{tensor.name}" reaches {largest:.3g}, and fp16 ends at {FLOAT16_MAX:g}', code="precision"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _convert_attributes(node: onnx.NodeProto) -> None:
    """Step 4."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name))
