"""Metrics, their bootstrap intervals over patients, and temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from hagmil.errors import DataError
from hagmil.trainer.metrics.bootstrap import ScoredSlide, assess_with_intervals, estimate_share
from hagmil.trainer.metrics.classification import classification_metrics
from hagmil.trainer.metrics.resampled import confidence_bins, measure
from hagmil.trainer.metrics.temperature_scaling import COLDEST, HOTTEST, at_temperature, fit_temperature

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


def test_undefined_metrics_are_none() -> None:
    probabilities, _ = verdicts(6, 3)
    found = assess_with_intervals(scored(probabilities, np.array([0, 0, 1, 1, 0, 1])), CLASSES, resamples=50)
    assert found.auc.value is None
    assert found.balanced_accuracy.value is None
    assert found.by_class[2].sensitivity == found.by_class[2].auc
    assert (found.by_class[2].sensitivity.value, found.by_class[2].sensitivity.undefined_resamples) == (None, 50)
    assert found.by_class[2].specificity.value is not None
    assert found.accuracy.low is not None


def test_resamples_without_a_class_are_excluded_from_its_metrics_and_counted() -> None:
    probabilities, _ = verdicts(8, 2)
    labels = np.array([1, 0, 0, 0, 0, 0, 0, 0])
    found = assess_with_intervals(scored(probabilities, labels), ("a", "b"), resamples=4000)
    # A patient is missed with probability (1 - 1/8)^8 = 0.3436.
    assert found.auc.undefined_resamples == pytest.approx(0.3436 * 4000, abs=120)
    assert found.by_class[1].sensitivity.undefined_resamples == found.auc.undefined_resamples
    assert found.auc.low is not None
    assert found.accuracy.undefined_resamples == 0


def test_intervals_are_wider_if_patients_have_several_slides() -> None:
    single, labels = verdicts(40, 2)
    apart = assess_with_intervals(scored(single.repeat(4, axis=0), labels.repeat(4)), ("a", "b"), resamples=500)
    together = assess_with_intervals(
        scored(single.repeat(4, axis=0), labels.repeat(4), slides_of_case=4), ("a", "b"), resamples=500
    )
    assert apart.accuracy.value == together.accuracy.value
    assert (apart.patients, together.patients) == (160, 40)
    assert _width(together.accuracy) == pytest.approx(2 * _width(apart.accuracy), rel=0.25)


def test_the_interval_of_an_accuracy_is_close_to_the_binomial_one() -> None:
    labels = np.zeros(400, np.int64)
    probabilities = np.tile([0.9, 0.1], (400, 1))
    probabilities[:80] = [0.1, 0.9]
    found = assess_with_intervals(scored(probabilities, labels), ("a", "b")).accuracy
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.8 - 1.96 * 0.02, 0.8 + 1.96 * 0.02), abs=0.006)


def test_intervals_depend_on_the_seed_only() -> None:
    scores = scored(*verdicts(30, 3))
    one, two, three = (assess_with_intervals(scores, CLASSES, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one.accuracy.value == three.accuracy.value
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
    found = estimate_share([True] * 6 + [False] * 2, [f"case-{place}" for place in range(8)], resamples=200)
    assert found.value == 0.75
    assert found.low is not None
    assert found.low < 0.75 < (found.high or 0.0)


def test_fitting_recovers_a_known_temperature() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=1.5, size=(20_000, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (generator.random((20_000, 1)) > true.cumsum(axis=1)).sum(axis=1)
    sharpened = at_temperature(true, 1 / 2.5)  # logits times 2.5: overconfident
    temperature = fit_temperature(sharpened, labels)
    assert temperature == pytest.approx(2.5, rel=0.03)
    before, after = (measure(table, labels) for table in (sharpened, at_temperature(sharpened, temperature)))
    assert after.calibration_error[0] < 0.02 < before.calibration_error[0]
    assert after.log_loss[0] < before.log_loss[0]
    assert after.auc[0] == pytest.approx(before.auc[0], abs=0.02)
    assert after.accuracy[0] == before.accuracy[0]


def test_the_temperature_is_finite_if_all_slides_are_classified_correctly() -> None:
    probabilities = np.array([[0.99, 0.01], [0.02, 0.98], [0.97, 0.03], [0.01, 0.99]])
    labels = np.array([0, 1, 0, 1])
    temperature = fit_temperature(probabilities, labels)
    assert COLDEST < temperature < HOTTEST
    assert at_temperature(probabilities, temperature).max() < 0.95


def test_predictions_worse_than_chance_give_the_highest_temperature_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9]] * 10)
    labels = np.array([1, 0] * 10)
    assert fit_temperature(probabilities, labels) == pytest.approx(HOTTEST, rel=1e-3)
    assert "at an end of its range" in caplog.text


def test_probabilities_of_zero_and_one_remain_finite_at_a_temperature() -> None:
    softened = at_temperature(np.array([[1.0, 0.0]]), 2.0)
    assert np.isfinite(softened).all()
    assert softened.sum() == pytest.approx(1.0)


def test_fitting_a_temperature_without_slides_raises_an_error() -> None:
    with pytest.raises(DataError, match="no slide"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, np.int64))


def _width(estimate: object) -> float:
    return float(estimate.high - estimate.low)  # type: ignore[attr-defined]
