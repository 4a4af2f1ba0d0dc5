"""hagmil infer on the command line."""

from __future__ import annotations

import contextlib
import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hagmil.bundle import write_manifest
from hagmil.errors import EnvironmentLacks
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.sessions.onnx import available_providers
from hagmil.runtime.tissue.kernels import kernels_on
from tests.cli.terminal import hagmil
from tests.runtime.calibrated import calibrated, with_tested
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.runtime.small_bundle import write_small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pyramid(tmp_path_factory.mktemp("slides") / "tissue.tif", tissue_picture(), tile_px=256)


def test_exit_code_is_0_for_good_slides_and_3_if_a_slide_fails(slide: Path, bundle: Path, tmp_path: Path) -> None:
    good = hagmil("infer", slide, "--model", bundle, "--out", tmp_path / "good")
    assert good.returncode == 0, good.stderr
    assert "1 of 1 slides have a verdict" in good.stdout
    both = hagmil("infer", slide, tmp_path / "gone.svs", "--model", bundle, "--out", tmp_path / "both")
    assert both.returncode == 3
    assert "does not exist" in both.stdout
    with (tmp_path / "both" / "results.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok", "failed"]


def test_verbose_logs_details_before_and_after_the_command(slide: Path, bundle: Path, tmp_path: Path) -> None:
    arguments = (slide, "--model", bundle, "--out", tmp_path, "--overwrite")
    details = "DEBUG hagmil.runtime.slides"
    assert details not in hagmil("infer", *arguments).stderr
    for line in (("-v", "infer", *arguments), ("infer", *arguments, "-v"), ("infer", "--verbose", *arguments)):
        done = hagmil(*line)
        assert done.returncode == 0, done.stderr
        assert details in done.stderr


def test_a_folder_with_results_needs_resume_or_overwrite(bundle: Path, tmp_path: Path) -> None:
    arguments = ("infer", tmp_path / "gone.svs", "--model", bundle, "--out", tmp_path / "out")
    assert hagmil(*arguments).returncode == 3
    table = (tmp_path / "out" / "results.csv").read_bytes()
    refused = hagmil(*arguments)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "out" / "results.csv").read_bytes() == table
    assert hagmil(*arguments, "--resume", "--overwrite").returncode == 2
    for choice in ("--resume", "--overwrite"):
        assert hagmil(*arguments, choice).returncode == 3


def test_results_are_written_to_hagmil_results_by_default(slide: Path, bundle: Path, tmp_path: Path) -> None:
    assert hagmil("infer", slide, "--model", bundle, cwd=tmp_path).returncode == 0
    assert (tmp_path / "hagmil-results" / "tissue" / "heatmap.png").is_file()


def test_an_adaptive_run_prints_certainty_numbers_of_kept_patches_and_warnings(slide: Path, tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    model = with_tested(calibrated(load_model(folder, threads=1), threshold=0.5), largest_bag=10)
    write_manifest(folder, model.bundle.manifest)
    other = shutil.copy(slide, tmp_path / "other.tif")
    done = hagmil("infer", slide, other, "--model", folder, "--out", tmp_path / "out", "--adaptive")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^tissue +ok +dark +0\.\d+ +sure +8 ", done.stdout, re.MULTILINE)
    assert "0 of these verdicts are not sure" in done.stdout
    assert "tissue: larger_than_tested: the slide has 139 patches" in done.stderr
    assert "(and 1 more slide with this warning)" in done.stderr


def test_a_missing_provider_exits_with_5(slide: Path, bundle: Path, tmp_path: Path) -> None:
    if "cuda" in available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    done = hagmil("infer", slide, "--model", bundle, "--provider", "cuda", "--out", tmp_path)
    assert done.returncode == 5
    assert "hagmil[gpu]" in done.stderr
    assert not (tmp_path / "results.csv").exists()


def test_masks_on_a_missing_gpu_exit_with_5_before_a_slide_is_read(slide: Path, bundle: Path, tmp_path: Path) -> None:
    with contextlib.suppress(EnvironmentLacks):
        kernels_on("cuda")
        pytest.skip("this machine has a GPU and cupy")
    done = hagmil("infer", slide, "--model", bundle, "--mask-device", "cuda", "--out", tmp_path)
    assert done.returncode == 5
    assert "cupy" in done.stderr
    assert not (tmp_path / "results.csv").exists()


def test_an_unknown_mask_device_exits_with_2(slide: Path, bundle: Path, tmp_path: Path) -> None:
    done = hagmil("infer", slide, "--model", bundle, "--mask-device", "tpu", "--out", tmp_path)
    assert done.returncode == 2
    assert "cpu, cuda" in done.stderr


def test_an_altered_bundle_exits_with_4(slide: Path, tmp_path: Path) -> None:
    altered = write_small_bundle(tmp_path / "bundle")
    data = bytearray((altered / "1um.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "1um.onnx").write_bytes(data)
    done = hagmil("infer", slide, "--model", altered, "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "1um.onnx was altered" in done.stderr


def test_a_terminated_run_exits_with_6_and_can_be_resumed(slide: Path, bundle: Path, tmp_path: Path) -> None:
    copies = [shutil.copy(slide, tmp_path / f"slide_{index:02d}.tif") for index in range(30)]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hagmil", "infer", *map(str, copies), "--model", str(bundle), "--out", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("*/result.json")) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 6, errors
    assert "--resume to continue" in errors
    done_before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert 1 <= len(done_before) < 30
    resumed = hagmil(*command[3:], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in done_before.items())
    assert len(list(out.glob("*/result.json"))) == 30
