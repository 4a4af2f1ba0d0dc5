"""hagmil inspect on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hagmil.bundle import open_backbone, open_bundle, write_manifest
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.inference.loaded_bundle import builtin_bundle
from tests.cli.terminal import hagmil
from tests.export.checkpoints import CERTAINTY, TESTED, write_small_checkpoint
from tests.fakes.bundles import write_small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> Path:
    """A bundle with one stage."""
    folder = tmp_path_factory.mktemp("source")
    write_small_checkpoint(folder / "checkpoint", open_backbone(backbone_dir), stages=("fine",))
    return export_bundle(folder / "checkpoint", backbone_dir, folder / "bundle").bundle.path


def test_a_bundle_is_described(bundle: Path) -> None:
    done = hagmil("inspect", bundle)
    assert done.returncode == 0, done.stderr
    for words in ("hag-mil", "normal, tumour", "tiny, 128 features", "fp32", "gives the verdict", "not calibrated"):
        assert words in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for start in ("parity of tensor", "fine attention 14", "engines: none", "backbone.onnx 0.2 20 20 fp32"):
        assert any(line.startswith(start) for line in lines), start


def test_the_slides_with_which_a_bundle_was_tested_are_described(tmp_path: Path) -> None:
    manifest = open_bundle(write_small_bundle(tmp_path)).manifest
    write_manifest(tmp_path, manifest.model_copy(update={"tested": TESTED, "certainty": CERTAINTY}))
    done = hagmil("inspect", tmp_path)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "those of all patches from 20 kept patches on, on 9 slides (val) of 12 to 345 coarse patches" in printed
    assert "above a margin of 0.25 (heuristic), from 9 slides of 12 to 345 coarse patches" in printed


def test_an_onnx_file_is_described_with_and_without_the_onnx_package(bundle: Path) -> None:
    done = hagmil("inspect", bundle / "fine.onnx")
    assert done.returncode == 0, done.stderr
    for words in ("features: float32 (patches, 128)", "logits: float32 (2)", "attention: float32 (patches)", "MatMul"):
        assert words in done.stdout
    code = (
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'onnx' else find(name, *more); "
        "sys.modules.update({'torch': None, 'onnx': None}); from hagmil.cli import main; "
        f"sys.argv = ['hagmil', 'inspect', {str(bundle / 'fine.onnx')!r}]; main()"
    )
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert bare.returncode == 0, bare.stderr
    assert "features: float32 (patches, 128)" in bare.stdout
    assert "needs the onnx package" in bare.stdout


def test_a_path_that_is_neither_exits_with_2(tmp_path: Path) -> None:
    done = hagmil("inspect", tmp_path)
    assert done.returncode == 2
    assert "is neither a bundle" in done.stderr


def test_the_built_in_bundle_is_described_without_an_argument() -> None:
    done = hagmil("inspect")
    assert done.returncode == 0, done.stderr
    assert str(builtin_bundle()) in done.stdout
    assert done.stdout == hagmil("inspect", builtin_bundle()).stdout
