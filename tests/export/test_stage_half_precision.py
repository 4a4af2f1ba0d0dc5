"""Half-precision graphs and their emulation with rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hagmil.errors import BundleError, UsageError
from hagmil.export.graph import save
from hagmil.export.half_backbone import check_half_parity, write_half_backbone
from hagmil.export.parity.compare import enforce_parity
from hagmil.export.parity.graph_under_test import open_rounded
from hagmil.export.parity.synthetic_inputs import synthetic_patches
from hagmil.export.passes.half_precision import to_half
from hagmil.export.passes.rounded import rounded
from hagmil.export.passes.types import element_types
from hagmil.export.stage_half_precision import parse_precision
from hagmil.runtime.sessions import open_session


def _model(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",), **weights: object) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    exits = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in outputs]
    graph = helper.make_graph(nodes, "g", [entry], exits, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(
    model: onnx.ModelProto, path: Path, rows: object
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    save(model, path / "graph.onnx")
    return open_session(path / "graph.onnx", threads=1).run({"x": np.asarray(rows, np.float32)})


EDGES = (
    [
        helper.make_node("Mul", ["x", "before"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["rectified"]),
        helper.make_node("MatMul", ["rectified", "second"], ["products"]),
        helper.make_node("Mul", ["products", "after"], ["y"]),
    ],
    {"before": 0.1, "first": np.eye(2), "second": np.eye(2), "after": 3.0},
)


def test_nodes_between_the_first_and_the_last_product_are_fp16_and_others_fp32() -> None:
    half = to_half(_model(EDGES[0], **EDGES[1]))
    types = element_types(half)

    onnx.checker.check_model(half)
    assert [(value.name, types[value.name]) for value in (*half.graph.input, *half.graph.output)] == [
        ("x", 1),
        ("y", 1),
    ]
    assert types["scaled"] == types["before"] == types["after"] == types["products/float"] == TensorProto.FLOAT
    inner = ("scaled/half", "hidden/half", "rectified/half", "products/half", "first/half", "second/half")
    assert {types[name] for name in inner} == {TensorProto.FLOAT16}
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    shapes = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in half.graph.value_info}  # fmt: skip
    assert shapes["hidden/half"] == ["n", 2]


def test_an_output_that_is_also_used_inside_stays_valid(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["z"]),
        helper.make_node("MatMul", ["z", "second"], ["y"]),
    ]
    half = to_half(_model(nodes, ("y", "z"), first=[[1, 0], [0, 2]], second=[[3, 0], [0, 4]]))
    outputs = _run(half, tmp_path, [[1, 1]])

    onnx.checker.check_model(half)
    assert outputs["z"].tolist() == [[1, 2]]
    assert outputs["y"].tolist() == [[3, 8]]
    assert outputs["y"].dtype == outputs["z"].dtype == np.float32


def test_a_weight_out_of_the_range_of_fp16_is_refused_by_name() -> None:
    with pytest.raises(BundleError, match=r'weight "first" has values up to 1e\+05; the largest fp16 value is 65504'):
        to_half(_model([helper.make_node("MatMul", ["x", "first"], ["y"])], first=np.full((2, 2), 1e5)))


def test_non_standard_operators_are_refused() -> None:
    with pytest.raises(BundleError, match=r"operator com\.acme\.Odd cannot be converted to fp16"):
        to_half(_model([helper.make_node("Odd", ["x"], ["y"], domain="com.acme")]))


def test_an_overflow_on_a_gpu_is_reproduced_by_the_rounded_graph_only(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "up"], ["z"]), helper.make_node("MatMul", ["z", "down"], ["y"])]
    half = to_half(_model(nodes, up=np.eye(2) * 1000, down=np.eye(2) / 1000))
    rows = [[1, 2], [100, 200]]

    as_it_is = _run(half, tmp_path, rows)["y"]
    twin = open_rounded(tmp_path / "graph.onnx").run({"x": np.asarray(rows, np.float32)})["y"]

    assert np.allclose(as_it_is, rows, rtol=2e-3)  # ONNX Runtime computes in float32 between the casts
    assert np.allclose(twin[0], rows[0], rtol=2e-3)
    assert not np.isfinite(twin[1]).any()


def test_every_value_of_the_rounded_graph_is_a_fp16_number(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "third"], ["y"])]
    half = to_half(_model(nodes, third=np.eye(2) / 3))
    given = _run(rounded(half), tmp_path, [[0.1, 7.0]])["y"]

    assert np.array_equal(given, given.astype(np.float16).astype(np.float32))
    assert np.array_equal(
        given[0], np.float32(np.float16(np.float32([0.1, 7]).astype(np.float16) * np.float32(np.float16(1 / 3))))
    )


def test_rounding_does_not_change_a_float32_graph() -> None:
    model = _model(EDGES[0], **EDGES[1])

    assert rounded(model).graph.node == model.graph.node


def test_a_half_precision_backbone_is_compared_over_batches_and_kinds_of_patches(
    backbone_dir: Path, tmp_path: Path
) -> None:
    write_half_backbone(backbone_dir / "backbone.onnx", tmp_path / "half.onnx")
    rows = [
        row for case in check_half_parity(backbone_dir / "backbone.onnx", tmp_path / "half.onnx", 64) for row in case
    ]

    enforce_parity(rows)
    assert {row.sample for row in rows} == {"tissue", "noise", "white", "phantom"}
    assert {row.lengths["batch"] for row in rows} == {1, 2, 7}
    assert {(row.rounded, row.reference) for row in rows} == {(True, "graph"), (False, "graph")}
    assert all(row.cosine is not None and row.cosine > 0.9999 for row in rows)
    assert 2 * (tmp_path / "half.onnx").stat().st_size < 1.2 * (backbone_dir / "backbone.onnx").stat().st_size


def test_pixels_are_normalised_in_float32(backbone_dir: Path, tmp_path: Path) -> None:
    write_half_backbone(backbone_dir / "backbone.onnx", tmp_path / "half.onnx")
    model = onnx.load(tmp_path / "half.onnx")

    assert [node.op_type for node in model.graph.node[:5]] == ["Cast", "Transpose", "Mul", "Add", "Cast"]
    features = open_session(tmp_path / "half.onnx", threads=1).run({"patches": synthetic_patches("phantom", 2, 64, 64)})
    assert features["features"].dtype == np.float32


def test_unknown_precisions_are_refused_with_the_reason() -> None:
    assert (parse_precision("fp16"), parse_precision("int8")) == ("fp16", "int8")
    with pytest.raises(UsageError, match=r"bf16.*does not support bf16.*choose one of fp32, fp16"):
        parse_precision("bf16")
    with pytest.raises(UsageError, match='precision "int4" cannot be exported; choose'):
        parse_precision("int4")
