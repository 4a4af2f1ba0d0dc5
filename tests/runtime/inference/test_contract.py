"""Tensors of graphs are checked when a bundle is opened, and again in every run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hagmil.bundle import file_entries, open_bundle, write_manifest
from hagmil.errors import BundleError
from hagmil.runtime.inference.contract import CheckedSession, backbone_contract
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.sessions import open_session
from tests.runtime.small_bundle import backbone_graph, stage_graph, write_small_bundle

STAGE = "0.5um.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def _load_with(bundle: Path, name: str, model: onnx.ModelProto) -> LoadedModel:
    """Load the bundle with another graph, whose digest the manifest lists."""
    (bundle / name).write_bytes(model.SerializeToString())
    manifest = open_bundle(bundle, verify=False).manifest
    write_manifest(bundle, manifest.model_copy(update={"files": file_entries(bundle)}))
    return load_model(bundle)


def _declare(model: onnx.ModelProto, index: int, kind: int, axes: list[str | int] | None) -> onnx.ModelProto:
    output = model.graph.output[index]
    output.CopyFrom(helper.make_tensor_value_info(output.name, kind, axes))
    return model


def _pass_through(model: onnx.ModelProto, index: int, operator: str, *inputs: str, **attributes: int) -> None:
    """Put one more operator in front of an output, without changing the declaration of the output."""
    name = model.graph.output[index].name
    for node in model.graph.node:
        node.output[:] = ["raw" if each == name else each for each in node.output]
    model.graph.node.append(helper.make_node(operator, ["raw", *inputs], [name], **attributes))


def _int64_logits() -> onnx.ModelProto:
    model = stage_graph()
    _pass_through(model, 0, "Cast", to=TensorProto.INT64)
    return _declare(model, 0, TensorProto.INT64, [2])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: _declare(stage_graph(), 0, TensorProto.FLOAT, [3]), "logits has axis None where the contract has"),
        (lambda: _declare(stage_graph(), 1, TensorProto.FLOAT, ["patches", 1]), "has the axes"),
        (_int64_logits, "is int64, not float32"),
    ],
)
def test_declared_tensors_that_break_the_contract_are_refused_when_a_bundle_is_opened(
    bundle: Path, model: Callable[[], onnx.ModelProto], words: str
) -> None:
    with pytest.raises(BundleError, match=rf"0\.5um\.onnx does not follow the contract.*{words}") as caught:
        _load_with(bundle, STAGE, model())
    assert caught.value.code == "contract"


def _doubled_attention() -> onnx.ModelProto:
    model = stage_graph()
    _pass_through(model, 1, "Concat", "raw", axis=0)
    return model


def test_attention_of_another_length_is_refused_in_the_first_run(bundle: Path) -> None:
    stage = _load_with(bundle, STAGE, _doubled_attention()).stages[-1]
    with pytest.raises(BundleError, match=r"gave attention as float32 \(10,\), not float32 \(5,\)") as caught:
        stage.run({"features": np.ones((5, 3), np.float32)})
    assert caught.value.code == "contract"


def _one_row() -> onnx.ModelProto:
    model = backbone_graph()
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    _pass_through(model, 0, "ReduceMean", "first", keepdims=1)
    return model


def _scalar() -> onnx.ModelProto:
    model = backbone_graph()
    _pass_through(model, 0, "ReduceMean", keepdims=0)
    return model


@pytest.mark.parametrize("model", [_one_row, _scalar])
def test_a_backbone_that_does_not_give_one_row_per_patch_is_refused(
    bundle: Path, model: Callable[[], onnx.ModelProto]
) -> None:
    with pytest.raises(BundleError) as caught:
        _load_with(bundle, "backbone.onnx", model()).backbone.run({"patches": np.ones((4, 16, 16, 3), np.uint8)})
    assert caught.value.code == "contract"


def test_a_backbone_folder_has_the_same_contract(bundle: Path) -> None:
    session = open_session(bundle / "backbone.onnx", threads=1)
    patches = {"patches": np.ones((4, 16, 16, 3), np.uint8)}
    assert CheckedSession(session, backbone_contract("backbone.onnx", 3, None)).run(patches)["features"].shape == (4, 3)
    with pytest.raises(BundleError, match="features has 3 dim, the manifest says 5"):
        CheckedSession(session, backbone_contract("backbone.onnx", 5, None))
