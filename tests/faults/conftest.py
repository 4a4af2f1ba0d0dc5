"""Fixtures of the tests of faults: what the commands need, and a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.export.checkpoints import write_small_checkpoint
from tests.runtime.conftest import small_bundle, tissue_path
from tests.runtime.small_bundle import write_small_backbone
from tests.trainer.cohorts import write_cohort

__all__ = ["small_bundle", "tissue_path"]

DISK_BYTES = 4 << 20


@dataclass(frozen=True)
class Commands:
    """The arguments of the commands that write an output folder; ``slides`` are two slides."""

    slides: tuple[Path, Path]
    bundle: Path
    backbone: Path
    checkpoint: Path
    config: Path

    def arguments(self, name: str, out: Path) -> list[object]:
        """Arguments of a command that writes to ``out``."""
        return {
            "infer": ["infer", *self.slides, "--model", self.bundle, "--out", out],
            "extract": [
                *("extract", *self.slides, "--backbone", self.backbone, "--out", out),
                *("--stages", "2,1", "--patch-px", 64),
            ],
            "train": ["train", self.config, "--set", f"out={out}"],
            "export": ["export", self.checkpoint, "--backbone", self.backbone, "--out", out],
            "phantom": ["phantom", out, "--slides", 2, "--size", 256],
        }[name]


NAMES = ("infer", "extract", "train", "export", "phantom")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory, tissue_path: Path, small_bundle: Path) -> Commands:
    """Small inputs of every command."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "second.tif").symlink_to(tissue_path)
    tree = write_cohort(folder, parts={"train": 2, "val": 2, "test": 0})
    (folder / "config.yaml").write_text(yaml.safe_dump({**tree, "schedule": {"max_epochs": 2}}))
    write_small_checkpoint(folder / "checkpoint", write_small_backbone(folder / "backbone"))
    slides = (tissue_path, folder / "second.tif")
    return Commands(slides, small_bundle, folder / "backbone", folder / "checkpoint", folder / "config.yaml")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def free_bytes(disk: Path) -> int:
    """Free bytes of a disk."""
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize
