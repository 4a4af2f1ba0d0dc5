"""hagmil verify, export and infer on the command line, on intact and on damaged bundles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hagmil.bundle import file_entries, open_bundle, write_manifest
from hagmil.cli.app import app
from hagmil.errors import UsageError
from hagmil.runtime.inference.loaded_bundle import builtin_bundle
from hagmil.selftest import SelfTestCase, write_selftest
from tests.cli.terminal import hagmil


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path, checkpoint_dir: Path) -> Path:
    """A bundle with TensorRT engines for two GPUs, made on the command line."""
    folder = tmp_path_factory.mktemp("export")
    done = hagmil(
        "export", checkpoint_dir, "--backbone", backbone_dir, "--out", folder / "bundle",
        "--trt", "--compute-capability", "8.9", "--compute-capability", "8.0",
        "--trt-batch", "1,4,8", "--trt-patches", "1,100,1000",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "engines/" in done.stdout
    return folder / "bundle"


def test_a_bundle_with_engines_is_accepted(bundle: Path) -> None:
    done = hagmil("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "the bundle can be used on this machine" in done.stdout
    manifest = open_bundle(bundle).manifest
    assert {entry.capabilities for entry in manifest.engines} == {("8.0", "8.9")}
    assert [entry.profiles[0]["features"].maximum[0] for entry in manifest.engines[1:]] == [1000, 1000]
    assert manifest.engines[0].profiles[0]["patches"].maximum[0] == 8
    inspected = hagmil("inspect", bundle).stdout
    for entry in manifest.engines:
        assert entry.memory_bytes is not None
        assert f"{entry.memory_bytes / 1e6:.1f}" in inspected
    assert manifest.opsets == {"backbone.onnx": 20, "coarse.onnx": 20, "fine.onnx": 20}


def test_json_lists_every_check(bundle: Path) -> None:
    done = hagmil("verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bundle_sha256"] == open_bundle(bundle).sha256
    assert report["provider"] == "CPUExecutionProvider"
    found = {(check["part"], check["state"]) for check in report["checks"]}
    assert {("manifest", "ok"), ("file", "ok"), ("graph", "ok"), ("self-test", "ok")} <= found
    assert "failed" not in {state for _, state in found}
    assert len([check for check in report["checks"] if check["part"] == "engine"]) == 3
    assert len([check for check in report["checks"] if check["part"] == "self-test"]) == 5


@pytest.mark.parametrize("pattern", ["fine.onnx", "backbone.onnx", "engines/fine.*.engine"])
def test_verify_and_infer_refuse_a_bundle_with_one_flipped_bit(bundle: Path, tmp_path: Path, pattern: str) -> None:
    altered = shutil.copytree(bundle, tmp_path / "bundle")
    (victim,) = altered.glob(pattern)
    _flip_a_bit(victim)
    verified = hagmil("verify", altered)
    assert verified.returncode == 4
    assert f"{victim.name} was altered" in verified.stderr
    inferred = hagmil("infer", "slide.tif", "--model", altered, "--out", tmp_path / "out")
    assert inferred.returncode == 4
    assert f"{victim.name} was altered" in inferred.stderr
    assert not (tmp_path / "out").exists()


def test_json_of_an_altered_bundle_is_complete_and_exits_with_4(bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(bundle, tmp_path / "bundle")
    _flip_a_bit(altered / "coarse.onnx")
    (altered / "notes.txt").write_text("mine")
    done = hagmil("verify", altered, "--json")
    assert done.returncode == 4
    states = {(check["part"], check["subject"]): check["state"] for check in json.loads(done.stdout)["checks"]}
    assert states["file", "coarse.onnx"] == "failed"
    assert states["file", "fine.onnx"] == "ok"
    assert states["file", "notes.txt"] == "note"
    assert states["graph", "all"] == states["self-test", "selftest.npz"] == "skipped"


def test_a_folder_without_a_bundle_exits_with_4(tmp_path: Path) -> None:
    done = hagmil("verify", tmp_path)
    assert done.returncode == 4
    assert "it has no bundle.json" in done.stderr


def test_a_missing_provider_exits_with_5(bundle: Path) -> None:
    done = hagmil("verify", bundle, "--provider", "cuda")
    assert done.returncode in (0, 5)
    if done.returncode == 5:
        assert "hagmil[gpu]" in done.stderr


def test_the_built_in_bundle_is_verified_without_an_argument() -> None:
    done = hagmil("verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle_sha256"] == open_bundle(builtin_bundle()).sha256


def test_verify_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    code = (
        "import sys; sys.modules.update({'torch': None, 'onnx': None}); from hagmil.cli import main; "
        f"sys.argv = ['hagmil', 'verify', {str(bundle)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_tensorrt_flavour_exits_with_5_before_the_export(
    backbone_dir: Path, checkpoint_dir: Path, tmp_path: Path
) -> None:
    done = _export(checkpoint_dir, backbone_dir, tmp_path, "--trt", "--trt-flavour", "tensorrt")
    assert done.returncode == 5
    assert 'pip install "hagmil[tensorrt]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--compute-capability", "8.9"), "add --trt"),
        (("--precision", "bf16"), "does not support bf16"),
        (("--precision", "int4"), "choose one of fp32, fp16"),
        (("--precision", "int8"), "needs --calibration"),
        (("--parity", "short"), "choose one of default, long"),
        (("--trt", "--trt-batch", "1,2"), "min,opt,max"),
        (("--trt", "--trt-patches", "3,2,1"), "min <= opt <= max"),
        (("--trt", "--trt-hardware-compatibility", "all"), "ampere_plus"),
        (("--trt", "--compute-capability", "eight"), "is not a compute capability"),
    ],
)
def test_wrong_options_of_export_are_refused_at_once(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    command = ["export", str(tmp_path / "none"), "--backbone", "none", "--out", str(tmp_path / "made"), *arguments]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UsageError)
    assert words in error.message


def test_rebuild_needs_tensorrt(tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["infer", "slide.tif", "--rebuild", "--out", str(tmp_path)]).exception
    assert isinstance(error, UsageError)
    assert "--provider tensorrt" in error.message


def test_export_fails_if_no_parity_slide_can_be_read(backbone_dir: Path, checkpoint_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.tif").write_bytes(b"")
    done = _export(checkpoint_dir, backbone_dir, tmp_path, "--parity-slides", tmp_path / "empty.tif")
    assert done.returncode == 4
    assert "no slide of 1 given slides has a verdict to compare" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty.tif"]


def test_a_failed_self_test_exits_with_4(bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = open_bundle(altered).manifest
    bag = np.ones((3, manifest.backbone.features), np.float32)
    outputs = {"logits": np.array([50.0, 0.0], np.float32), "attention": np.zeros(3, np.float32)}
    write_selftest(altered / "selftest.npz", [SelfTestCase("fine", {"features": bag}, outputs, 1e-3, 1e-3)])
    write_manifest(altered, manifest.model_copy(update={"files": file_entries(altered)}))
    done = hagmil("verify", altered, "--json")
    assert done.returncode == 4
    failed = {
        check["subject"]: check["detail"] for check in json.loads(done.stdout)["checks"] if check["state"] == "failed"
    }
    assert failed["coarse"] == failed["backbone"] == "the self-test has no case for it"
    assert failed["fine logits"].startswith("off by")


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def _export(checkpoint: Path, backbone: Path, out: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return hagmil("export", checkpoint, "--backbone", backbone, "--out", out / "made", *options)
