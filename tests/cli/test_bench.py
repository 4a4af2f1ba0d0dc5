"""hagmil bench on the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from tests.cli.terminal import hagmil
from tests.conftest import REPOSITORY
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.runtime.small_bundle import write_small_bundle

QUICK = ("--provider", "cpu", "--repeats", "1", "--patches", "32", "--batch-size", "16", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide without a spacing."""
    path = tmp_path_factory.mktemp("slides") / "tissue.tif"
    return save_pyramid(path, tissue_picture(), spacing_um=None, tile_px=256)


@pytest.fixture(scope="module")
def reported(slide: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report."""
    out = tmp_path_factory.mktemp("bench") / "report"
    done = hagmil("bench", slide, "--model", bundle, "--out", out, "--spacing-um", 0.5, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "slide to results" in done.stdout
    assert f"report: {out / 'report.html'}" in done.stdout
    return out


def test_a_report_has_two_files_and_matches_the_schema(reported: Path) -> None:
    assert sorted(path.name for path in reported.iterdir()) == ["report.html", "report.json"]
    found = json.loads((reported / "report.json").read_text())
    jsonschema.validate(found, json.loads((REPOSITORY / "docs" / "schemas" / "bench.schema.json").read_text()))
    assert found["slide"]["spacing_source"] == "override"
    assert found["command"].startswith("hagmil bench ")
    assert found["settings"]["batch"] == 16


def test_two_reports_are_compared(reported: Path, tmp_path: Path) -> None:
    report = reported / "report.json"
    done = hagmil("bench", "--compare", report, report, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "reading alone" in done.stdout
    assert "similar" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = hagmil("bench", "--compare", report, report, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page" / "comparison.html").read_text()
    assert "<svg" in text
    assert "http" not in text


def test_a_file_that_is_not_a_report_exits_with_2(reported: Path, bundle: Path) -> None:
    done = hagmil("bench", "--compare", reported / "report.json", bundle / "bundle.json")
    assert done.returncode == 2
    assert "not a report of hagmil bench" in done.stderr


def test_a_bad_slide_exits_with_3_and_writes_no_report(slide: Path, bundle: Path, tmp_path: Path) -> None:
    for bad, words in ((slide, "--spacing-um"), (tmp_path / "gone.svs", "does not exist")):
        done = hagmil("bench", bad, "--model", bundle, "--out", tmp_path / "out", *QUICK)
        assert done.returncode == 3, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.glob("out/*")) == []


def test_a_missing_bundle_exits_with_4_and_a_wrong_provider_with_2(slide: Path, bundle: Path, tmp_path: Path) -> None:
    assert hagmil("bench", slide, "--model", tmp_path).returncode == 4
    assert hagmil("bench", slide, "--model", bundle, "--provider", "abacus").returncode == 2


def test_a_terminated_bench_exits_with_6_and_leaves_no_files(bundle: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "hagmil", "bench", "--model", str(bundle), "--out", str(tmp_path / "out")],
        env={"TMPDIR": str(work), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(work.glob("hagmil-bench-*")) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 6, errors
    assert list(tmp_path.glob("out/*")) == []
    assert list(work.glob("hagmil-bench-*")) == []
