"""The built-in demonstration model on real slides: a bare ``hagmil infer`` does what it promises."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from hagmil.bundle import open_bundle
from hagmil.runtime.inference.loaded_bundle import builtin_bundle
from tests.cli.terminal import hagmil

LARGEST_BYTES = 3_000_000


def test_the_built_in_bundle_is_whole_small_and_says_what_it_knows() -> None:
    manifest = open_bundle(builtin_bundle()).manifest
    assert [stage.spacing_um for stage in manifest.stages] == [2.0, 1.0, 0.5]
    assert "verdicts on real slides have no meaning" in manifest.intended_use
    assert sum(entry.bytes for entry in manifest.files.values()) < LARGEST_BYTES


def test_a_real_slide_gets_a_verdict_and_a_heatmap(data_folder: Path, tmp_path: Path) -> None:
    slide = data_folder / "slides" / "CMU-1-Small-Region.svs"
    done = hagmil("infer", slide, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verdicts on real slides have no meaning" in done.stderr
    result = json.loads((tmp_path / "CMU-1-Small-Region" / "result.json").read_text())
    assert result["status"] == "ok"
    assert result["spacing_um"] == pytest.approx(0.499)
    with Image.open(tmp_path / "CMU-1-Small-Region" / "heatmap.png") as picture:
        assert min(picture.size) > 500


def test_slides_that_cannot_be_judged_each_say_why_and_the_good_one_is_done(data_folder: Path, tmp_path: Path) -> None:
    slides = data_folder / "slides"
    wanted = {
        "fluorescence.ndpi": ("rejected", "not_brightfield", "transmitted light"),
        "broken.svs": ("failed", "unreadable", "known slide format"),
        "unreadable.svs": ("failed", "unreadable", "damaged"),
        "unopenable.tiff": ("failed", "unreadable", "compression"),
        "boxes.tiff": ("rejected", "spacing_missing", "--spacing-um"),
        "CMU-1-Small-Region.svs": ("ok", "", ""),
    }
    done = hagmil("infer", *(slides / name for name in wanted), "--out", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {Path(row["slide"]).name: row for row in csv.DictReader(file)}
    assert list(rows) == list(wanted)
    for name, (status, code, words) in wanted.items():
        assert (rows[name]["status"], rows[name]["code"]) == (status, code), name
        assert words in rows[name]["message"], name
