"""Metrics, their bootstrap intervals over patients, and temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from hagmil.errors import DataError
from hagmil.trainer.metrics.bootstrap import Assessment, ScoredSlide, assess_with_intervals, estimate_share
from hagmil.trainer.metrics.classification import classification_metrics
from hagmil.trainer.metrics.estimate import Estimate
from hagmil.trainer.metrics.resampled import confidence_bins, measure
from hagmil.trainer.metrics.temperature_scaling import HOTTEST, at_temperature, fit_temperature

CLASSES = ("normal", "atypical", "malignant")


def verdicts(slides: int, classes: int, *, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Make probabilities that favour the labels, rounded so that ties occur."""
    generator = np.random.default_rng(seed)
    labels = np.arange(slides) % classes
    logits = generator.normal(size=(slides, classes)).round(1)
    logits[np.arange(slides), labels] += 1.0
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels.astype(np.int64)


def scored(probabilities: NDArray[np.float64], labels: NDArray[np.int64], slides_of_case: int = 1) -> list[ScoredSlide]:
    return [
        ScoredSlide(f"slide-{place}", f"case-{place // slides_of_case}", int(label), tuple(row))
        for place, (row, label) in enumerate(zip(probabilities.tolist(), labels, strict=True))
    ]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_equal_those_of_scikit_learn(classes: int) -> None:
    probabilities, labels = verdicts(97, classes)
    predictions = probabilities.argmax(axis=1)
    found = measure(probabilities, labels)
    if classes == 2:
        assert found.auc[0] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=1e-12)
    else:
        expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert found.auc[0] == pytest.approx(expected, abs=1e-12)
    assert found.accuracy[0] == pytest.approx((predictions == labels).mean())
    assert found.balanced_accuracy[0] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert found.macro_f1[0] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert found.log_loss[0] == pytest.approx(log_loss(labels, probabilities))
    brier = brier_score_loss(labels, probabilities[:, 1] if classes == 2 else probabilities)
    assert found.brier_score[0] == pytest.approx(brier)
    precision = [average_precision_score(labels == index, probabilities[:, index]) for index in range(classes)]
    assert found.class_average_precision[0] == pytest.approx(precision)
    assert found.average_precision[0] == pytest.approx(np.mean(precision))
    assert found.confusion[0].tolist() == confusion_matrix(labels, predictions).tolist()
    for index in range(classes):
        truth, guess = labels == index, predictions == index
        assert found.sensitivity[0, index] == pytest.approx(recall_score(truth, guess))
        assert found.specificity[0, index] == pytest.approx(recall_score(~truth, ~guess))
        assert found.class_auc[0, index] == pytest.approx(roc_auc_score(truth, probabilities[:, index]))


def test_weights_have_the_effect_of_repeated_slides() -> None:
    probabilities, labels = verdicts(20, 3)
    times = np.random.default_rng(1).integers(0, 4, size=20)
    weighted = measure(probabilities, labels, times[np.newaxis].astype(np.float64))
    repeated = measure(np.repeat(probabilities, times, axis=0), np.repeat(labels, times))
    for name, value, expected in zip(weighted._fields, weighted, repeated, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-12, err_msg=name)


def test_metrics_agree_with_those_of_the_training() -> None:
    for classes in (2, 3):
        probabilities, labels = verdicts(31, classes)
        found = measure(probabilities, labels)
        expected = classification_metrics(probabilities, labels, loss=None, empty_slides=0)
        assert (found.auc[0], found.accuracy[0], found.macro_f1[0]) == pytest.approx(
            (expected.auc, expected.accuracy, expected.macro_f1)
        )


def test_the_calibration_error_of_a_known_case() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    # Two at 0.9, half right: 0.4 off. Two at 0.6, both right: 0.4 off.
    assert measure(probabilities, labels).calibration_error[0] == pytest.approx(0.4)


def test_bins_include_their_upper_edge_and_probability_one_is_in_the_last() -> None:
    assert confidence_bins(np.array([1.0, 1e-9, 0.2, 0.2 + 1e-9])).tolist() == [14, 0, 2, 3]


def test_the_log_loss_of_probabilities_of_0_and_1_equals_that_of_scikit_learn() -> None:
    probabilities, labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]]), np.array([1, 1, 0])
    assert measure(probabilities, labels).log_loss[0] == pytest.approx(log_loss(labels, probabilities), rel=1e-12)


def test_the_metrics_of_a_class_without_slides_are_undefined() -> None:
    probabilities, _ = verdicts(6, 3)
    found = assess_with_intervals(scored(probabilities, np.array([0, 0, 1, 1, 0, 1])), CLASSES, resamples=50)
    absent = found.by_class[2]
    for estimate in (found.auc, found.balanced_accuracy, found.macro_f1, found.average_precision):
        assert (estimate.value, estimate.low) == (None, None)
    for estimate in (absent.auc, absent.sensitivity, absent.f1, absent.average_precision):
        assert (estimate.value, estimate.low) == (None, None)
    assert absent.specificity.value is not None
    assert found.accuracy.low is not None


def test_no_interval_of_a_small_cohort_has_a_width_of_zero() -> None:
    labels = np.arange(8) % 2
    found = assess_with_intervals(scored(0.1 + 0.8 * np.eye(2)[labels], labels), ("a", "b"), resamples=50)
    for name, estimate in named(found).items():
        assert estimate.value is not None
        if estimate.no_interval is None:
            assert estimate.low is not None, name
            assert estimate.low < (estimate.high or 0.0) - 0.1, name
    assert found.auc.low is not None
    assert found.by_class[0].f1.low is not None
    assert found.balanced_accuracy.low is not None


def test_the_bootstrap_gives_intervals_from_30_patients_of_each_class_on() -> None:
    for patients, has_interval in ((58, False), (60, True)):
        found = assess_with_intervals(scored(*verdicts(patients, 2)), ("a", "b"), resamples=200)
        for estimate in (found.macro_f1, found.log_loss, found.brier_score, found.average_precision):
            assert estimate.value is not None
            assert (estimate.low is not None) == has_interval
            if has_interval:
                assert estimate.low < estimate.value < estimate.high
            else:
                assert "a class has only 29 patients" in (estimate.no_interval or "")


def test_the_bca_interval_of_the_log_loss_equals_that_of_scipy() -> None:
    probabilities, labels = verdicts(70, 2)
    in_order = np.argsort([f"case-{place}" for place in range(70)])
    losses = -np.log(probabilities[np.arange(70), labels])[in_order]
    expected = stats.bootstrap((losses,), np.mean, n_resamples=300, rng=np.random.default_rng(3)).confidence_interval
    found = assess_with_intervals(scored(probabilities, labels), ("a", "b"), resamples=300, seed=3).log_loss
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_equal_resamples_give_no_interval() -> None:
    labels = np.arange(60) % 2
    found = assess_with_intervals(scored(0.1 + 0.8 * np.eye(2)[labels], labels), ("a", "b"), resamples=50)
    assert found.macro_f1.value == 1.0
    assert (found.macro_f1.low, found.macro_f1.high) == (None, None)
    assert "same value" in (found.macro_f1.no_interval or "")


def test_the_calibration_error_has_no_interval_and_says_why() -> None:
    found = assess_with_intervals(scored(*verdicts(60, 2)), ("a", "b"), resamples=50).calibration_error
    assert found.value is not None
    assert (found.low, found.high) == (None, None)
    assert "biased upwards" in (found.no_interval or "")


def test_intervals_are_wider_if_patients_have_several_slides() -> None:
    single, labels = verdicts(40, 2)
    apart = assess_with_intervals(scored(single.repeat(4, axis=0), labels.repeat(4)), ("a", "b"), resamples=500)
    together = assess_with_intervals(
        scored(single.repeat(4, axis=0), labels.repeat(4), slides_of_case=4), ("a", "b"), resamples=500
    )
    assert apart.accuracy.value == together.accuracy.value
    assert (apart.patients, together.patients) == (160, 40)
    assert _width(together.accuracy) == pytest.approx(2 * _width(apart.accuracy), rel=0.25)


def test_intervals_depend_on_the_seed_only() -> None:
    scores = scored(*verdicts(90, 3))
    one, two, three = (assess_with_intervals(scores, CLASSES, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one.accuracy == three.accuracy
    assert one.log_loss.low != three.log_loss.low


def test_a_single_patient_has_no_interval() -> None:
    found = assess_with_intervals(scored(*verdicts(3, 3), slides_of_case=3), CLASSES, resamples=10)
    assert (found.accuracy.low, found.accuracy.high, found.patients) == (None, None, 1)
    assert found.accuracy.value is not None


def test_assessing_no_slides_raises_an_error() -> None:
    with pytest.raises(DataError, match="no slide"):
        assess_with_intervals([], CLASSES)


def test_confusion_shares_sum_to_one_in_each_row() -> None:
    found = assess_with_intervals(scored(*verdicts(30, 3)), CLASSES, resamples=20)
    assert sum(map(sum, found.confusion)) == 30
    for row in found.confusion_share:
        assert sum(cell.value or 0.0 for cell in row) == pytest.approx(1.0)


def test_a_share_of_slides_has_an_interval_over_patients() -> None:
    found = estimate_share([True] * 6 + [False] * 2, [f"case-{place}" for place in range(8)])
    assert found.value == 0.75
    assert found.low is not None
    assert found.low < 0.75 < (found.high or 0.0)


def test_fitting_recovers_a_known_temperature() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=1.5, size=(20_000, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (generator.random((20_000, 1)) > true.cumsum(axis=1)).sum(axis=1)
    sharpened = at_temperature(true, 1 / 2.5)  # logits times 2.5: overconfident
    temperature = fit_temperature(sharpened, labels, patients(20_000))
    assert temperature == pytest.approx(2.5, rel=0.03)
    before, after = (measure(table, labels) for table in (sharpened, at_temperature(sharpened, temperature)))
    assert after.calibration_error[0] < 0.02 < before.calibration_error[0]
    assert after.log_loss[0] < before.log_loss[0]
    assert after.auc[0] == pytest.approx(before.auc[0], abs=0.02)
    assert after.accuracy[0] == before.accuracy[0]


def test_the_temperature_is_close_to_1_if_few_slides_are_all_classified_correctly() -> None:
    probabilities = np.array([[0.99, 0.01], [0.02, 0.98], [0.97, 0.03], [0.01, 0.99]])
    temperature = fit_temperature(probabilities, np.array([0, 1, 0, 1]), patients(4))
    assert 0.9 < temperature <= 1.0


def test_fitting_calibrated_probabilities_of_7_classes_does_not_make_the_log_loss_worse() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2.5, size=(2000, 7))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (generator.random((2000, 1)) > true.cumsum(axis=1)).sum(axis=1)
    fitted = [
        fit_temperature(true[start : start + 50], labels[start : start + 50], patients(50))
        for start in range(0, 1000, 50)
    ]
    assert fitted.count(1.0) >= 15
    losses = [measure(at_temperature(true, temperature), labels).log_loss[0] for temperature in fitted]
    assert np.mean(losses) == pytest.approx(measure(true, labels).log_loss[0], rel=0.01)


def test_the_temperature_is_1_if_the_gain_is_due_to_a_single_patient() -> None:
    probabilities = np.tile([0.7, 0.3], (12, 1))
    labels = np.zeros(12, np.int64)
    labels[:6] = 1
    assert fit_temperature(probabilities, labels, ["a"] * 6 + list("bcdefg")) == 1.0
    assert fit_temperature(probabilities, labels, ["a"] * 12) == 1.0


def test_predictions_worse_than_chance_give_the_highest_temperature_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9]] * 200)
    labels = np.array([1, 0] * 200)
    assert fit_temperature(probabilities, labels, patients(400)) == pytest.approx(HOTTEST, rel=1e-3)
    assert "at an end of its range" in caplog.text


def test_probabilities_of_zero_and_one_remain_finite_at_a_temperature() -> None:
    softened = at_temperature(np.array([[1.0, 0.0]]), 2.0)
    assert np.isfinite(softened).all()
    assert softened.sum() == pytest.approx(1.0)


def test_fitting_a_temperature_without_slides_raises_an_error() -> None:
    with pytest.raises(DataError, match="no slide"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, np.int64), [])


def patients(count: int) -> list[str]:
    return [f"case-{place}" for place in range(count)]


def named(found: Assessment) -> dict[str, Estimate]:
    """Return all metrics and those of the classes."""
    sections = [found, *found.by_class]
    return {
        f"{place} {name}": value
        for place, section in enumerate(sections)
        for name, value in section
        if isinstance(value, Estimate)
    }


def _width(estimate: object) -> float:
    return float(estimate.high - estimate.low)  # type: ignore[attr-defined]
