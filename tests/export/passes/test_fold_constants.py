"""Constant folding, including large constants."""

from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hagmil.export.passes.fold_constants import fold_constants

ROWS = 300  # with 64 columns above what an exporter folds by itself


def sliced_weight() -> tuple[onnx_ir.Model, np.ndarray]:
    """A graph that computes x times the transpose of a slice of a weight."""
    weight = np.random.default_rng(0).normal(size=(ROWS, 64)).astype(np.float32)
    bounds = {"start": [100], "stop": [200], "axis": [0]}
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["weight", *bounds], ["part"]),
            helper.make_node("Transpose", ["part"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["y"]),
        ],
        "sliced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])],
        [
            numpy_helper.from_array(weight, "weight"),
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in bounds.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx_ir.from_proto(model), weight


def test_a_slice_of_a_weight_replaces_the_weight() -> None:
    model, weight = sliced_weight()
    fold_constants(model)
    folded = onnx_ir.to_proto(model)

    assert [node.op_type for node in folded.graph.node] == ["MatMul"]
    (kept,) = folded.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(kept), weight[100:200].T)


def test_folding_keeps_the_outputs() -> None:
    model, _ = sliced_weight()
    rows = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    (expected,) = ReferenceEvaluator(onnx_ir.to_proto(model)).run(None, {"x": rows})
    fold_constants(model)
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, {"x": rows})[0], expected, rtol=1e-5, atol=1e-5)
