"""Evaluation of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hagmil.errors import BundleError, DataError, UsageError
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.evaluation.evaluate_checkpoint import evaluate_checkpoint
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import THREE_STAGES, configured, write_cohort, write_slide, write_split
from tests.trainer.hierarchy_cohorts import cascade_with_hierarchy, write_hierarchy_cohort

PARTS = {"train": 8, "val": 4, "test": 8}


def flat(folder: Path) -> TrainingConfig:
    return configured(write_cohort(folder, parts=PARTS, stages=THREE_STAGES))


def hmil(folder: Path) -> TrainingConfig:
    return configured(write_hierarchy_cohort(folder, parts=PARTS))


def cascade(folder: Path) -> TrainingConfig:
    return configured(cascade_with_hierarchy(write_hierarchy_cohort(folder, parts=PARTS, stages=THREE_STAGES)))


@pytest.mark.parametrize("make", [flat, hmil, cascade])
def test_an_evaluation_has_the_metrics_that_the_training_wrote(make: Any, tmp_path: Path) -> None:
    config = make(tmp_path)
    metrics = train(config)
    for part, expected in (("val", metrics.validation), ("test", metrics.test)):
        found = evaluate_checkpoint(config.out, config, part=part, resamples=20)
        assert found.verdict.classes == metrics.classes
        assert found.verdict.slides == expected.slides
        assert found.verdict.auc.value == pytest.approx(expected.auc)
        assert found.verdict.accuracy.value == pytest.approx(expected.accuracy)
        assert found.verdict.macro_f1.value == pytest.approx(expected.macro_f1)
        if expected.hierarchy is None:
            assert found.coarse is None
            assert found.verdict.log_loss.value == pytest.approx(expected.loss, rel=1e-5)
        else:
            assert found.coarse is not None
            assert found.agreement is not None
            assert found.coarse.accuracy.value == pytest.approx(expected.hierarchy.coarse_accuracy)
            assert found.coarse.auc.value == pytest.approx(expected.hierarchy.coarse_auc)
            assert found.agreement.value == pytest.approx(expected.hierarchy.agreement)


def test_numbers_of_kept_patches_are_compared_with_all_patches(tmp_path: Path) -> None:
    config = configured(write_cohort(tmp_path, parts={"train": 2, "val": 2, "test": 6}), schedule={"max_epochs": 1})
    train(config)
    found = evaluate_checkpoint(config.out, config, keeps=[2, 5], resamples=10)
    assert found.tested is not None
    rows = {row.keep: row for row in found.tested.keeps}
    assert list(rows) == [2, 5, None]
    assert rows[5].right == found.verdict.accuracy.value  # the checkpoint keeps 5
    assert rows[5].auc == found.verdict.auc.value
    assert rows[None].agreement == 1.0
    assert rows[2].patches_read == sum(n + 4 * min(2, n) for n in range(1, 7)) / 6
    assert found.tested.sizes[0].largest_bag == 3
    without = evaluate_checkpoint(config.out, config, resamples=10)
    assert without.tested is None
    assert without.slides == found.slides


def test_numbers_of_kept_patches_are_refused_for_hmil(tmp_path: Path) -> None:
    config = configured(write_hierarchy_cohort(tmp_path), schedule={"max_epochs": 1})
    train(config)
    with pytest.raises(UsageError, match="kind hmil has a single stage, which reads all patches; leave out --keeps"):
        evaluate_checkpoint(config.out, config, keeps=[4])


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    config = configured(write_cohort(tmp_path), schedule={"max_epochs": 1})
    train(config)
    return config


def test_only_the_evaluated_part_needs_features(config: TrainingConfig) -> None:
    for name in ("train-0", "train-1", "val-0"):
        (config.data.features / f"{name}.h5").unlink()
    assert evaluate_checkpoint(config.out, config, resamples=10).verdict.slides == 2
    with pytest.raises(DataError, match=r'no features in .* for "val-0"'):
        evaluate_checkpoint(config.out, config, part="val", resamples=10)


def test_slides_of_one_patient_are_drawn_together(config: TrainingConfig) -> None:
    labels = config.data.labels
    assert labels is not None
    labels.write_text(labels.read_text().replace("case-test-1", "case-test-0"))
    assert evaluate_checkpoint(config.out, config, resamples=10).verdict.patients == 1


def test_a_slide_without_tissue_is_listed_and_counts_in_no_metric(config: TrainingConfig) -> None:
    write_slide(config.data.features, "test-1", 1, patches=0)
    found = evaluate_checkpoint(config.out, config, resamples=10)
    assert found.empty_slides == ("test-1",)
    assert [slide.slide_id for slide in found.slides] == ["test-0"]


def test_a_part_without_slides_raises_an_error(config: TrainingConfig) -> None:
    write_split(config.data.split, {"train": ["train-0"], "val": ["val-0"], "test": []})
    with pytest.raises(DataError, match="no slide in its test part"):
        evaluate_checkpoint(config.out, config)


def test_a_label_unknown_to_the_model_raises_an_error(config: TrainingConfig) -> None:
    labels = config.data.labels
    assert labels is not None
    labels.write_text(labels.read_text().replace("case-test-1,tumour", "case-test-1,lymphoma"))
    with pytest.raises(DataError, match='labels that are not a class: "lymphoma"'):
        evaluate_checkpoint(config.out, config)


def test_features_that_are_not_finite_raise_an_error_that_names_the_slide(config: TrainingConfig) -> None:
    write_slide(config.data.features, "test-1", 1, value=float("nan"))
    with pytest.raises(DataError, match=r'slide "test-1".*not finite; extract the slide again'):
        evaluate_checkpoint(config.out, config)


def test_features_of_other_stages_are_rejected(config: TrainingConfig) -> None:
    for name in ("test-0", "test-1"):
        write_slide(config.data.features, name, 0, stages=THREE_STAGES)
    with pytest.raises(DataError, match="stages of the features"):
        evaluate_checkpoint(config.out, config)


def test_a_missing_checkpoint_raises_an_error(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no checkpoint"):
        evaluate_checkpoint(tmp_path / "features", config)
