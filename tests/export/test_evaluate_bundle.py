"""Evaluation of a bundle, in comparison with its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hagmil.bundle import open_backbone, open_bundle, write_manifest
from hagmil.errors import DataError, UsageError
from hagmil.export.evaluate_bundle import bundle_runner, evaluate_bundle
from hagmil.export.pipeline import ExportReport, export_bundle
from hagmil.runtime.inference.verdict import verdict_of
from hagmil.spec import LOGITS
from hagmil.trainer.config.training import TrainingConfig, parse_config
from hagmil.trainer.evaluation.evaluate_checkpoint import evaluate_checkpoint
from hagmil.trainer.evaluation.report import EvaluationReport
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import write_cohort, write_slide
from tests.trainer.hierarchy_cohorts import cascade_with_hierarchy, write_hierarchy_cohort

STAGES = (("coarse", 1.0), ("fine", 0.5))
WIDTH = 128


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> TrainingConfig:
    """Features for the small checkpoint, with more patches than a stage keeps."""
    folder = tmp_path_factory.mktemp("cohort")
    tree = write_cohort(folder, parts={"train": 2, "val": 6, "test": 8}, stages=STAGES)
    for part, count in (("train", 2), ("val", 6), ("test", 8)):
        for index in range(count):
            write_slide(
                folder / "features",
                f"{part}-{index}",
                index % 2,
                patches=15 + 3 * index,
                stages=STAGES,
                backbone_sha256=open_backbone(backbone_dir).sha256,
                width=WIDTH,
            )
    return parse_config(tree, source="test")


@pytest.fixture
def bundle(report: ExportReport, tmp_path: Path) -> Path:
    """A copy of the bundle that a test can calibrate."""
    return Path(shutil.copytree(report.bundle.path, tmp_path / "bundle"))


def test_a_bundle_and_its_checkpoint_have_the_same_metrics(
    checkpoint_dir: Path, bundle: Path, config: TrainingConfig
) -> None:
    one = evaluate_checkpoint(checkpoint_dir, config, resamples=200)
    other = evaluate_bundle(bundle, config, resamples=200)
    assert [slide.slide_id for slide in one.slides] == [f"test-{index}" for index in range(8)]
    for slide, same in zip(one.slides, other.slides, strict=True):
        assert (slide.slide_id, slide.label, slide.prediction) == (same.slide_id, same.label, same.prediction)
        assert same.probabilities == pytest.approx(slide.probabilities, abs=1e-5)
    assert one.verdict.confusion == other.verdict.confusion
    for name in ("auc", "accuracy", "balanced_accuracy", "macro_f1"):
        assert getattr(one.verdict, name) == getattr(other.verdict, name)
    assert other.verdict.log_loss.value == pytest.approx(one.verdict.log_loss.value, abs=1e-5)
    assert (one.model.what, other.model.what) == ("checkpoint", "bundle")


@pytest.mark.parametrize("cascade", [False, True])
def test_both_layers_of_a_hierarchy_are_equal_and_get_a_temperature(
    cascade: bool, backbone_dir: Path, tmp_path: Path
) -> None:
    stages = STAGES if cascade else STAGES[1:]
    tree = write_hierarchy_cohort(tmp_path, parts={"train": 4, "val": 4, "test": 4}, stages=stages)
    for slide in (tmp_path / "features").glob("*.h5"):
        label = int(slide.stem.rpartition("-")[2]) % 4
        digest = open_backbone(backbone_dir).sha256
        write_slide(slide.parent, slide.stem, label, stages=stages, width=WIDTH, backbone_sha256=digest)
    config = parse_config(cascade_with_hierarchy(tree) if cascade else tree, source="test")
    train(config)
    made = tmp_path / "bundle"
    export_bundle(config.out, backbone_dir, made)
    one, other = evaluate_checkpoint(config.out, config, resamples=20), evaluate_bundle(made, config, resamples=20)
    for slide, same in zip(one.slides, other.slides, strict=True):
        assert same.probabilities == pytest.approx(slide.probabilities, abs=1e-5)
        assert same.coarse_probabilities == pytest.approx(slide.coarse_probabilities, abs=1e-5)
    calibrated = evaluate_bundle(made, config, resamples=20, calibrate=True)
    manifest = open_bundle(made).manifest
    assert manifest.temperature == calibrated.model.temperature is not None
    assert manifest.coarse_temperature == calibrated.model.coarse_temperature is not None
    assert [slide.coarse_prediction for slide in calibrated.slides] == [slide.coarse_prediction for slide in one.slides]


def test_the_calibrated_temperature_is_stored_and_used_and_changes_the_digest(
    bundle: Path, config: TrainingConfig
) -> None:
    before = evaluate_bundle(bundle, config, part="val", resamples=20)
    digest = open_bundle(bundle).sha256
    after = evaluate_bundle(bundle, config, part="val", resamples=20, calibrate=True)
    opened = open_bundle(bundle)
    assert opened.sha256 != digest
    assert after.model.sha256 == opened.sha256
    assert after.model.temperature == opened.manifest.temperature is not None
    assert before.model.temperature is None
    assert after.verdict.confusion == before.verdict.confusion
    _assert_scaled(before, after, opened.manifest.temperature)
    again = evaluate_bundle(bundle, config, part="val", resamples=20)
    assert again.verdict == after.verdict


def test_a_second_calibration_changes_nothing(bundle: Path, config: TrainingConfig) -> None:
    first = evaluate_bundle(bundle, config, resamples=20, calibrate=True)
    second = evaluate_bundle(bundle, config, resamples=20, calibrate=True)
    assert first.model == second.model
    assert first.part == "test"


def test_the_runtime_divides_logits_by_the_temperature(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, manifest.model_copy(update={"temperature": 2.0}))
    opened = open_bundle(bundle)
    features = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)
    outputs = dict(bundle_runner(opened, threads=1)(1, features))
    plain, softened = verdict_of(manifest, outputs), verdict_of(opened.manifest, outputs)
    gap = float(outputs[LOGITS.name][1] - outputs[LOGITS.name][0])
    assert plain.prediction == softened.prediction
    assert plain.probabilities["tumour"] == pytest.approx(1 / (1 + np.exp(-gap)))
    assert softened.probabilities["tumour"] == pytest.approx(1 / (1 + np.exp(-gap / 2)))


def test_features_of_another_backbone_are_refused(bundle: Path, tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=STAGES)
    other = parse_config(tree, source="test")
    with pytest.raises(DataError, match="feature length of the features: 6; of the model: 128"):
        evaluate_bundle(bundle, other)
    for slide in ("test-0", "test-1"):
        write_slide(tmp_path / "features", slide, 0, stages=STAGES, width=WIDTH, backbone_sha256="c" * 64)
    with pytest.raises(DataError, match="backbone of the features: cccc"):
        evaluate_bundle(bundle, other)


def test_a_bundle_that_cannot_be_evaluated_is_not_calibrated(bundle: Path, tmp_path: Path) -> None:
    digest = open_bundle(bundle).sha256
    with pytest.raises(DataError):
        evaluate_bundle(bundle, parse_config(write_cohort(tmp_path, stages=STAGES), source="test"), calibrate=True)
    assert open_bundle(bundle).sha256 == digest


def test_kept_patches_are_compared_as_for_the_checkpoint_and_recorded_only_on_request(
    checkpoint_dir: Path, bundle: Path, config: TrainingConfig
) -> None:
    before = open_bundle(bundle)
    one = evaluate_checkpoint(checkpoint_dir, config, keeps=[2, 20], resamples=10).tested
    other = evaluate_bundle(bundle, config, keeps=[2, 20], resamples=10).tested
    assert one is not None
    assert other is not None
    for row, same in zip(one.keeps, other.keeps, strict=True):
        assert (row.keep, row.right, row.agreement, row.patches_read) == (
            same.keep,
            same.right,
            same.agreement,
            same.patches_read,
        )
        assert same.margins == pytest.approx(row.margins, abs=1e-4)
    assert open_bundle(bundle).sha256 == before.sha256
    recorded = evaluate_bundle(bundle, config, keeps=[2, 20], record=True, resamples=10)
    after = open_bundle(bundle)
    assert after.manifest == before.manifest.model_copy(update={"tested": other})
    assert recorded.model.sha256 == after.sha256 != before.sha256


def test_recording_needs_numbers_of_kept_patches(bundle: Path, config: TrainingConfig) -> None:
    with pytest.raises(UsageError, match="add --keeps"):
        evaluate_bundle(bundle, config, record=True)


def test_calibration_of_a_cascade_stores_the_threshold_of_sure_verdicts(bundle: Path, config: TrainingConfig) -> None:
    report = evaluate_bundle(bundle, config, part="val", keeps=[20], calibrate=True, resamples=10)
    found = open_bundle(bundle).manifest.certainty
    assert found is not None
    assert report.model.certainty == found
    assert (found.method, found.level, found.slides) == ("quantile", 0.1, 6)
    assert (found.smallest_bag, found.largest_bag, found.keeps) == (15, 30, (4, 8, 16, 32, 64))
    assert [row.keep for row in report.tested.keeps] == [20, None]  # type: ignore[union-attr]
    evaluate_bundle(bundle, config, calibrate=True, risk=0.2, resamples=10)
    changed = open_bundle(bundle).manifest
    assert changed.certainty is not None
    assert (changed.certainty.method, changed.certainty.level) == ("risk", 0.2)
    assert changed.certainty.slides == 6


def test_too_few_slides_for_a_risk_leave_the_bundle_unchanged(bundle: Path, config: TrainingConfig) -> None:
    digest = open_bundle(bundle).sha256
    with pytest.raises(UsageError, match="needs at least 19 validation slides with tissue, but there are 6"):
        evaluate_bundle(bundle, config, calibrate=True, risk=0.05)
    with pytest.raises(UsageError, match="add --calibrate"):
        evaluate_bundle(bundle, config, risk=0.05)
    assert open_bundle(bundle).sha256 == digest


def _assert_scaled(before: EvaluationReport, after: EvaluationReport, temperature: float | None) -> None:
    assert temperature is not None
    for one, other in zip(before.slides, after.slides, strict=True):
        odds = np.log(one.probabilities["tumour"] / one.probabilities["normal"])
        scaled = np.log(other.probabilities["tumour"] / other.probabilities["normal"])
        assert scaled == pytest.approx(odds / temperature, abs=1e-9)
