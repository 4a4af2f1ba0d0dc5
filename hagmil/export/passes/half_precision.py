"""Conversion of a float32 graph to half precision, with float32 inputs and outputs.

Requires a valid graph of standard operators without subgraphs. Ensures a valid graph with the same inputs and outputs
in which every node between the first and the last matrix product computes in float16.

Used for backbones, which are given as ONNX. Stage models are converted in torch instead
(:class:`hagmil.export.stage_half_precision.ReducedPrecision`).

1. Inner nodes are the matrix products and all nodes between two of them. All other nodes stay in float32: normalising
   pixels and pooling the last feature map in float32 costs almost nothing (docs/numerics.md).
2. Convert the weights of inner nodes to float16; a weight out of the range of float16 is an error.
3. Cast values that pass between inner and outer nodes, each once.
4. Change casts to float32 and float32 constants in inner nodes to float16.
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
"""Positions of operands that keep their type, by operator."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph that computes in float16.

    Raises:
        BundleError: the graph has subgraphs, non-standard operators, or weights out of the range of float16.
    """
    _refuse_unknown(model.graph)
    floats = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inner = _inner_nodes(graph)  # step 1
    inner_values = {name for place, node in enumerate(graph.node) if place in inner for name in node.output}
    rewriter = _Rewriter(weights, floats, inner_values)
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
    infer_shapes(half)  # raises if types do not match
    return half


class _Rewriter:
    """Steps 2 to 4, node by node in the order of the graph.

    Args:
        weights: weights of the graph by name.
        floats: names of all float32 values and weights.
        inner_values: names of the outputs of inner nodes.
    """

    def __init__(self, weights: dict[str, onnx.TensorProto], floats: set[str], inner_values: set[str]) -> None:
        self._weights, self._floats, self._inner_values = weights, floats, inner_values
        self._cast: set[str] = set()
        self.new_weights: dict[str, onnx.TensorProto] = {}

    def casts_before(self, node: onnx.NodeProto, *, to_half: bool) -> list[onnx.NodeProto]:
        """Return the missing casts of the operands of a node."""
        casts = []
        for name in _floating_operands(node):
            crosses = name in self._floats and name not in self._weights and (name in self._inner_values) != to_half
            target = _as_half(name) if to_half else _as_float(name)
            if crosses and target not in self._cast:
                self._cast.add(target)
                source = name if to_half else _as_half(name)
                kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
                casts.append(helper.make_node("Cast", [source], [target], to=kind))
        return casts

    def rename(self, node: onnx.NodeProto, *, to_half: bool) -> None:
        """Rename operands and outputs of a node to the values of its type."""
        operands = set(_floating_operands(node))
        if to_half:
            node.input[:] = [self._half(name) if name in operands else name for name in node.input]
            node.output[:] = [_as_half(name) if name in self._floats else name for name in node.output]
            _convert_attributes(node)
        else:
            node.input[:] = [
                _as_float(name) if name in self._inner_values and name in self._floats else name for name in node.input
            ]

    def casts_to_outputs(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """Return casts of graph outputs that come from inner nodes; such an output may also be used by inner nodes."""
        return [
            helper.make_node("Cast", [_as_half(name)], [name], to=TensorProto.FLOAT)
            for name in names
            if name in self._inner_values and name in self._floats
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
    """Operands of a node, without those that are always float32."""
    fixed = _ALWAYS_FLOAT32.get(node.op_type, ())
    return tuple(name for place, name in enumerate(node.input) if name and place not in fixed)


def _inner_nodes(graph: onnx.GraphProto) -> set[int]:
    """Indices of the inner nodes (step 1); the nodes of a graph are in topological order."""
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
            raise BundleError(f"operator {node.domain}.{node.op_type} cannot be converted to fp16", code="precision")
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise BundleError(
                f"operator {node.op_type} has a subgraph; it cannot be converted to fp16", code="precision"
            )


def _half_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FLOAT16_MAX:
        raise BundleError(
            f'weight "{tensor.name}" has values up to {largest:.3g}; the largest fp16 value is {FLOAT16_MAX:g}',
            code="precision",
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _convert_attributes(node: onnx.NodeProto) -> None:
    """Step 4."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name))
