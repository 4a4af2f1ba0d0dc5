"""Intervals of proportions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hagmil.trainer.metrics.estimate import Estimate
from hagmil.trainer.metrics.proportion_interval import (
    effective_slides,
    estimate_f1,
    estimate_proportion,
    mean_of_proportions,
)


@pytest.mark.parametrize(("hits", "slides"), [(0, 5), (5, 5), (3, 20), (17, 20), (80, 400)])
def test_the_interval_of_one_slide_per_patient_equals_that_of_scipy(hits: int, slides: int) -> None:
    found = estimate_proportion(np.arange(slides) < hits, np.ones(slides, np.bool_), np.arange(slides))
    expected = stats.binomtest(hits, slides).proportion_ci(method="exact")
    assert found.value == hits / slides
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("hits", "slides", "expected"),
    [
        ([4, 4, 4], [4, 4, 4], 3.0),  # all agree: correlation 1, one for each patient
        ([1, 2, 3], [1, 2, 3], 36 / 14),
        ([1, 1, 0, 0], [1, 1, 1, 1], 4.0),
    ],
)
def test_the_effective_number_of_slides_of_known_cases(hits: list[int], slides: list[int], expected: float) -> None:
    assert effective_slides(np.array(hits, np.float64), np.array(slides, np.float64)) == pytest.approx(expected)


def test_repeated_slides_of_a_patient_add_no_information() -> None:
    flags = np.arange(40) < 30
    single = estimate_proportion(flags, np.ones(40, np.bool_), np.arange(40))
    repeated = estimate_proportion(flags.repeat(4), np.ones(160, np.bool_), np.arange(40).repeat(4))
    ends = single.low or 0.0, single.high or 0.0
    assert (repeated.low, repeated.high) == pytest.approx(ends, abs=0.01)
    assert (repeated.low or 1.0) <= ends[0]


def test_only_counted_slides_matter() -> None:
    counted = np.array([True, True, True, False, False])
    found = estimate_proportion(np.array([True, False, True, True, True]), counted, np.arange(5))
    assert found == estimate_proportion(np.array([True, False, True]), np.ones(3, np.bool_), np.arange(3))


def test_the_interval_of_f1_follows_from_that_of_the_jaccard_index() -> None:
    of_class = np.array([1, 1, 1, 1, 0, 0, 0], np.bool_)
    predicted = np.array([1, 1, 1, 0, 1, 0, 0], np.bool_)
    found = estimate_f1(of_class, predicted, np.arange(7))
    low, high = stats.binomtest(3, 5).proportion_ci()
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 2 * low / (1 + low), 2 * high / (1 + high)))


def test_the_mover_interval_of_a_known_case() -> None:
    parts = [Estimate(value=0.8, low=0.5, high=0.9), Estimate(value=0.6, low=0.2, high=0.8)]
    apart, together = (mean_of_proportions(parts, overlap=overlap) for overlap in (False, True))
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.7, 0.7 - 0.25, 0.7 + 0.05**0.5 / 2))
    assert (together.low, together.high) == pytest.approx((0.35, 0.85))
