"""Intervals of the area under the ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from hagmil.trainer.metrics.auc_interval import class_auc, estimate_auc


def scores_of(positive: int, negative: int, *, gap: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    truth = np.arange(positive + negative) < positive
    return np.random.default_rng(5).normal(size=len(truth)).round(1) + gap * truth, truth


def delong_variance(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Compute the variance from all pairs, as in DeLong et al. (1988)."""
    gaps = scores[truth][:, np.newaxis] - scores[~truth]
    order = (gaps > 0) + 0.5 * (gaps == 0)
    return float(order.mean(axis=1).var(ddof=1) / truth.sum() + order.mean(axis=0).var(ddof=1) / (~truth).sum())


def test_the_area_equals_that_of_scikit_learn_and_its_variance_that_of_delong() -> None:
    scores, truth = scores_of(12, 30)
    area = class_auc(scores, truth, np.arange(42))
    assert area is not None
    assert area.value == pytest.approx(roc_auc_score(truth, scores))
    assert np.square(area.by_patient).sum() == pytest.approx(delong_variance(scores, truth))


def test_the_ends_lie_1_96_of_their_standard_errors_from_the_area() -> None:
    area = class_auc(*scores_of(12, 30), np.arange(42))
    assert area is not None
    factor = max(1.0, np.sqrt(np.square(area.by_patient).sum()) / area.standard_error(area.value))
    found = estimate_auc([area])
    for end in (found.low, found.high):
        assert end is not None
        assert abs(end - area.value) == pytest.approx(1.959964 * factor * area.standard_error(end), rel=1e-6)


@pytest.mark.parametrize(("sign", "value"), [(1, 1.0), (-1, 0.0)])
def test_perfect_and_reversed_orders_have_an_interval(sign: int, value: float) -> None:
    truth = np.arange(20) < 10
    found = estimate_auc([class_auc(sign * (truth + np.linspace(0, 0.1, 20)), truth, np.arange(20))])
    assert found.value == value
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(0.2, abs=0.03)


def test_repeated_slides_of_a_patient_add_no_information() -> None:
    scores, truth = scores_of(20, 40)
    single = estimate_auc([class_auc(scores, truth, np.arange(60))])
    repeated = estimate_auc([class_auc(scores.repeat(4), truth.repeat(4), np.arange(60).repeat(4))])
    assert repeated.value == single.value
    assert single.low is not None
    assert single.high is not None
    assert (repeated.high or 0.0) - (repeated.low or 0.0) == pytest.approx(single.high - single.low, rel=0.1)


def test_the_mean_of_equal_areas_has_the_interval_of_one() -> None:
    area = class_auc(*scores_of(12, 30), np.arange(42))
    one, mean = estimate_auc([area]), estimate_auc([area, area])
    assert (mean.value, mean.low, mean.high) == pytest.approx((one.value, one.low, one.high), abs=0.02)


def test_a_class_of_a_single_patient_has_no_interval() -> None:
    scores, truth = scores_of(1, 9)
    found = estimate_auc([class_auc(scores, truth, np.arange(10))])
    assert found.value is not None
    assert "single patient" in (found.no_interval or "")
    assert estimate_auc([None]).value is None
