"""A bundle from an ONNX head that is not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hagmil._files import sha256_of
from hagmil.errors import HagmilError
from hagmil.export.onnx_head import OnnxHeadOptions, export_onnx_head
from hagmil.runtime.sessions import open_session
from hagmil.runtime.verify import verify_bundle
from tests.cli.terminal import hagmil
from tests.integration.published_files import write_colour_backbone

FEATURES = 6


def write_head(
    path: Path, *, features: int = FEATURES, patches: str | int = "patches", name: str = "attention"
) -> Path:
    """A head with three classes: attention of each class is the product with a matrix, logits are its mean."""
    matrix = np.random.default_rng(0).standard_normal((features, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["features", "matrix"], ["by_patch"]),
        helper.make_node("Transpose", ["by_patch"], [name], perm=[1, 0]),
        helper.make_node("ReduceMean", ["by_patch", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [patches, features])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, patches]),
        ],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    return write_colour_backbone(tmp_path / "backbone", FEATURES)


def test_the_command_makes_a_verified_bundle_with_the_same_graph(backbone: Path, tmp_path: Path) -> None:
    head = write_head(tmp_path / "mine.onnx")
    options = ("--classes", "a,b,c", "--spacing-um", "0.5", "--patch-px", "32")
    done = hagmil("export", "--head", head, "--backbone", backbone, "--out", tmp_path / "bundle", *options)
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "bundle" / "head.onnx") == sha256_of(head)
    report = verify_bundle(tmp_path / "bundle", threads=1)
    assert report.passed, report.checks
    outputs = open_session(tmp_path / "bundle" / "head.onnx").run({"features": np.ones((5, FEATURES), np.float32)})
    assert outputs["attention"].shape == (3, 5)


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        ({"features": 7}, {}, 'takes 7 features, but backbone "colour" gives 6'),
        ({"patches": 50}, {}, "input features has axis 50 where the contract has 'patches'"),
        ({"name": "scores"}, {}, "does not follow the contract: outputs of the graph are"),
        ({}, {"classes": ("a", "b")}, "--classes names 2 classes"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_and_nothing_is_written(
    graph: dict[str, Any], options: dict[str, Any], message: str, backbone: Path, tmp_path: Path
) -> None:
    head = write_head(tmp_path / "mine.onnx", **graph)
    wanted = OnnxHeadOptions(**{"classes": ("a", "b", "c"), "spacing_um": 0.5, "patch_px": 32, **options})
    with pytest.raises(HagmilError) as raised:
        export_onnx_head(head, backbone, tmp_path / "bundle", wanted)
    assert message in raised.value.message
    assert not (tmp_path / "bundle").exists()


def test_a_head_needs_what_its_graph_does_not_contain(backbone: Path, tmp_path: Path) -> None:
    done = hagmil("export", "--head", write_head(tmp_path / "h.onnx"), "--backbone", backbone, "--out", tmp_path / "b")
    assert done.returncode == 2
    assert "--head needs --classes, --spacing-um and --patch-px" in " ".join(done.stderr.split())
