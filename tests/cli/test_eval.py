"""hagmil split, train --folds and eval on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hagmil.bundle import open_backbone, open_bundle
from hagmil.export.pipeline import export_bundle
from hagmil.trainer.config.training import load_config
from hagmil.trainer.evaluation.report import EvaluationReport
from hagmil.trainer.training.loop import train
from tests.cli.terminal import hagmil
from tests.trainer.cohorts import write_cohort, write_slide

WIDTH = 128
STAGES = (("low", 1.0), ("high", 0.5))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> Path:
    """A cohort with features of the tiny backbone, a run trained on it, and the bundle of that run."""
    folder = tmp_path_factory.mktemp("study")
    parts = {"train": 4, "val": 4, "test": 6}
    tree: dict[str, Any] = write_cohort(folder, parts=parts, stages=STAGES)
    for part, count in parts.items():
        for index in range(count):
            write_slide(
                folder / "features",
                f"{part}-{index}",
                index % 2,
                patches=3 + index,
                stages=STAGES,
                backbone_sha256=open_backbone(backbone_dir).sha256,
                width=WIDTH,
            )
    (folder / "config.yaml").write_text(yaml.safe_dump({**tree, "schedule": {"max_epochs": 2}}))
    train(load_config(folder / "config.yaml"))
    export_bundle(folder / "run", backbone_dir, folder / "bundle")
    return folder


def read(folder: Path) -> EvaluationReport:
    return EvaluationReport.model_validate_json((folder / "evaluation.json").read_bytes())


def test_a_run_and_its_bundle_have_the_metrics_that_the_training_reported(study: Path, tmp_path: Path) -> None:
    reports = []
    for model in ("run", "bundle"):
        done = hagmil(
            "eval", study / model, "--config", study / "config.yaml", "--out", tmp_path / model, "--resamples", 100
        )
        assert done.returncode == 0, done.stderr
        assert "balanced accuracy" in done.stdout
        assert (tmp_path / model / "evaluation.html").is_file()
        reports.append(read(tmp_path / model))
    run, bundle = reports
    said = json.loads((study / "run" / "metrics.json").read_text())["test"]
    assert (run.verdict.slides, run.verdict.auc.value, run.verdict.accuracy.value) == (
        6,
        pytest.approx(said["auc"]),
        pytest.approx(said["accuracy"]),
    )
    assert run.verdict.log_loss.value == pytest.approx(said["loss"], abs=1e-6)
    for one, other in zip(run.slides, bundle.slides, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
    assert bundle.verdict.confusion == run.verdict.confusion


def test_calibrate_stores_a_temperature_in_a_bundle_and_refuses_a_run(study: Path, tmp_path: Path) -> None:
    refused = hagmil("eval", study / "run", "--config", study / "config.yaml", "--calibrate", "--out", tmp_path)
    assert refused.returncode == 2
    assert "hagmil export" in refused.stderr
    bundle = study / "bundle"
    before = open_bundle(bundle)
    done = hagmil(
        "eval", bundle, "--config", study / "config.yaml", "--part", "val", "--calibrate", "--out", tmp_path,
        "--resamples", 50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = open_bundle(bundle)
    assert before.manifest.temperature is None
    assert after.manifest.temperature is not None
    assert after.sha256 != before.sha256
    assert f"{after.manifest.temperature:.4f}" in done.stdout
    assert after.manifest.certainty is not None
    assert f"a verdict is sure above a margin of {after.manifest.certainty.threshold:.3f} (heuristic" in done.stdout
    assert "on 4 validation slides of 3 to 6 patches" in done.stdout
    assert after.sha256[:16] in done.stdout
    assert read(tmp_path).model.temperature == after.manifest.temperature


def test_numbers_of_kept_patches_are_shown_and_stored_on_request(study: Path, tmp_path: Path) -> None:
    options = ("--config", study / "config.yaml", "--keeps", "1,2,all", "--out", tmp_path, "--resamples", 10)
    shown = hagmil("eval", study / "run", *options)
    assert shown.returncode == 0, shown.stderr
    assert "agreement" in shown.stdout
    assert "6 slides of 3 to 8 patches at the coarsest stage" in shown.stdout
    assert [row.keep for row in read(tmp_path).tested.keeps] == [1, 2, None]  # type: ignore[union-attr]
    refused = hagmil("eval", study / "run", *options, "--record")
    assert refused.returncode == 2
    assert "is not a bundle, and --record changes a bundle" in refused.stderr
    stored = hagmil("eval", study / "bundle", *options, "--record")
    assert stored.returncode == 0, stored.stderr
    bundle = open_bundle(study / "bundle")
    assert bundle.sha256[:16] in stored.stdout
    assert bundle.manifest.tested == read(tmp_path).tested


def test_a_missing_model_exits_with_4_and_a_missing_configuration_with_2(study: Path, tmp_path: Path) -> None:
    assert hagmil("eval", tmp_path, "--config", study / "config.yaml", "--out", tmp_path).returncode == 4
    assert hagmil("eval", study / "run", "--config", tmp_path / "gone.yaml", "--out", tmp_path).returncode == 2


def test_folds_are_split_trained_and_summarised(study: Path, tmp_path: Path) -> None:
    made = hagmil("split", study / "labels.csv", "--out", tmp_path / "folds", "--folds", 3)
    assert made.returncode == 0, made.stderr
    assert "splits_2.csv" in made.stdout
    arguments = ("train", study / "config.yaml", "--set", f"out={tmp_path / 'cv'}", "--folds", tmp_path / "folds")
    done = hagmil(*arguments)
    assert done.returncode == 0, done.stderr
    assert "fold 2" in done.stdout
    summary = json.loads((tmp_path / "cv" / "summary.json").read_text())
    assert [run["fold"] for run in summary["folds"]] == [0, 1, 2]
    assert len(summary["test"]["accuracy"]["folds"]) == 3
    written = (tmp_path / "cv" / "fold_1" / "metrics.json").stat().st_mtime_ns
    assert hagmil(*arguments).returncode == 0
    assert (tmp_path / "cv" / "fold_1" / "metrics.json").stat().st_mtime_ns == written


def test_splits_hold_out_a_site_and_are_not_overwritten_by_default(study: Path, tmp_path: Path) -> None:
    with (study / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "site"])
        writer.writeheader()
        writer.writerows({**row, "site": "B" if row["slide_id"].startswith("test") else "A"} for row in rows)
    arguments = ("split", labels, "--out", tmp_path / "splits", "--count", 2, "--val", 0.25)
    assert hagmil(*arguments, "--held-out-site", "B").returncode == 0
    with (tmp_path / "splits" / "splits_1.csv").open(newline="") as file:
        tested = {row["test"] for row in csv.DictReader(file)} - {""}
    assert tested == {f"test-{index}" for index in range(6)}
    again = hagmil(*arguments)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert hagmil(*arguments[:4], "--folds", 3, "--count", 2).returncode == 2
