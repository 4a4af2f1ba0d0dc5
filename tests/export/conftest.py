"""One tiny backbone, one small checkpoint and one bundle for all tests of the export."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hagmil.bundle import open_backbone
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.pipeline import ExportReport, export_bundle
from tests.export.checkpoints import write_small_checkpoint
from tests.export.torchvision_stand_in import torchvision_stand_in


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone with random weights, exported."""
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    export_backbone("tiny", "random", folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> Path:
    """A small checkpoint of two stages on the tiny backbone."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_small_checkpoint(folder, open_backbone(backbone_dir))
    return folder


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, checkpoint_dir: Path, backbone_dir: Path) -> ExportReport:
    """The bundle of the two, exported."""
    return export_bundle(checkpoint_dir, backbone_dir, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def real_timm() -> Iterator[None]:
    """The real timm, over a stand-in for torchvision, which it imports and which is not wanted here."""
    if find_spec("timm") is None:
        pytest.skip("needs timm")
    with torchvision_stand_in():
        yield
