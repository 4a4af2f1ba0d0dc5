"""The whole path on a few small phantoms: cohort, features, training, export, inference."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from hagmil.bundle import open_bundle
from hagmil.errors import Interrupted, UsageError
from hagmil.runtime.results.result import read_result
from hagmil.workflows import demo
from hagmil.workflows.demo import DemoSize, run_demo


def test_the_demonstration_runs_from_nothing_to_verdicts(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    steps: list[str] = []
    report = run_demo(
        out, DemoSize(train_slides=8, unseen_slides=4, size_px=1024), lambda step, _done, _total: steps.append(step)
    )
    assert list(dict.fromkeys(steps)) == [
        "training phantoms",
        "unseen phantoms",
        "features",
        "training",
        "export",
        "inference",
    ]
    assert [result.status for result in report.results] == ["ok"] * 4
    assert report.lesion_ratio >= 0
    manifest = open_bundle(report.bundle).manifest
    assert "synthetic slides" in manifest.intended_use
    for slide, result in zip(report.truths, report.results, strict=True):
        assert read_result(report.out / slide.slide_id) == result
        stages = result.stages
        for coarse, fine in pairwise(stages):
            assert fine.encoded == 4 * coarse.kept


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="choose another --out"):
        run_demo(tmp_path, DemoSize(), lambda *_: None)
    assert (tmp_path / "thesis.txt").exists()


def test_an_interrupted_demonstration_names_no_option_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _stop(*_: object, **__: object) -> None:
        raise Interrupted("stopped; run the same command with --resume to continue")

    monkeypatch.setattr(demo, "slide_requests", lambda _: ())
    monkeypatch.setattr(demo, "load_model", lambda _: None)
    monkeypatch.setattr(demo, "predict_requests", _stop)
    with pytest.raises(Interrupted, match="run it again to start from the beginning"):
        demo._infer([], tmp_path, tmp_path, lambda *_: None)
