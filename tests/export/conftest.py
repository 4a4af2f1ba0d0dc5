"""Fixtures of the tests of the export: a tiny backbone, a small checkpoint and their bundle, made once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hagmil.export.pipeline import ExportReport, export_bundle
from tests.export.shared import backbone_dir, checkpoint_dir, share_stage_graphs
from tests.export.torchvision_stand_in import torchvision_stand_in

__all__ = ["backbone_dir", "checkpoint_dir", "share_stage_graphs"]


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, checkpoint_dir: Path, backbone_dir: Path) -> ExportReport:
    """The report of exporting the two to a bundle."""
    return export_bundle(checkpoint_dir, backbone_dir, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def real_timm() -> Iterator[None]:
    """The real timm, with a stand-in for torchvision, which it imports."""
    if find_spec("timm") is None:
        pytest.skip("needs timm")
    with torchvision_stand_in():
        yield
