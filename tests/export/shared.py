"""What the tests of a session share: a tiny backbone, a small checkpoint, and exported stage models.

Capturing and converting a small stage model takes about 25 s of CPU time, and its optimisation about 3 s. Stage models
that differ in their weights only have the same capture; tests/export/test_tracing.py checks that the graph does not
depend on whether the capture is reused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from torch import nn

from hagmil.bundle import Precision, open_backbone
from hagmil.export import pipeline
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.parity import stages
from hagmil.export.tracing import Captures, structure_of
from hagmil.spec import Kind
from tests.export.checkpoints import write_small_checkpoint

__all__ = ["backbone_dir", "checkpoint_dir", "share_stage_graphs", "stage_graph"]

_captures: Captures = {}
_graphs: dict[tuple[str, str, Kind, Precision], bytes] = {}
_folders: dict[str, Path] = {}


def stage_graph(
    model: nn.Module,
    feature_dim: int,
    kind: Kind,
    precision: Precision = "fp32",
    captures: Captures | None = None,  # noqa: ARG001 - replaced by those of the session
) -> onnx.ModelProto:
    """Export a stage model like :func:`hagmil.export.parity.stages.stage_graph`, each model once in a session."""
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    key = (structure_of(model), weights.hexdigest(), kind, precision)
    if key not in _graphs:
        _graphs[key] = stages.stage_graph(model, feature_dim, kind, precision, _captures).SerializeToString()
    return onnx.load_from_string(_graphs[key])


@pytest.fixture(scope="session", autouse=True)
def share_stage_graphs() -> Iterator[None]:
    """Let all exports of bundles share their stage graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "stage_graph", stage_graph)
        yield


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone with random weights, exported. Tests must not change it."""
    if "backbone" not in _folders:  # this fixture belongs to several conftest modules
        _folders["backbone"] = tmp_path_factory.mktemp("backbone") / "tiny"
        export_backbone("tiny", "random", _folders["backbone"])
    return _folders["backbone"]


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> Path:
    """A small checkpoint of two stages on the tiny backbone. Tests must not change it."""
    if "checkpoint" not in _folders:
        _folders["checkpoint"] = tmp_path_factory.mktemp("checkpoint")
        write_small_checkpoint(_folders["checkpoint"], open_backbone(backbone_dir))
    return _folders["checkpoint"]
