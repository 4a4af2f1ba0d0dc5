"""The threshold of sure verdicts: the heuristic and conformal risk control."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.bundle.adaptive import KEEPS, read_until_sure
from hagmil.errors import DataError, UsageError
from hagmil.trainer.cascade.certainty import calibrate_certainty, check_risk, risk_threshold
from hagmil.trainer.cascade.readings import KeepReading, SlideReadings


def logits(margin: float) -> NDArray[np.float32]:
    return np.array([0, margin], np.float32)


def slide(label: int, *margins: float, most_kept: int = 1000, size: int = 30) -> SlideReadings:
    """A slide whose logit of class 1, minus that of class 0, is given for K = 4, 8, and so on; the last one repeats."""
    padded = [*margins, *[margins[-1]] * (len(KEEPS) - len(margins))]
    by_keep: dict[int | None, KeepReading] = {
        keep: KeepReading(logits(margin), logits(margin), 10) for keep, margin in zip(KEEPS, padded, strict=True)
    }
    return SlideReadings("slide", label, size, most_kept, by_keep)


def test_the_heuristic_is_the_tenth_percentile_of_the_margins_of_successive_readings() -> None:
    slides = [
        slide(1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        slide(0, -1.5, -2.5, -3.5, -4.5, -5.5, -6.5),
        slide(0, 0.5, -7.0, -8.0, -9.0, -9.5, -10.0),
    ]
    margins = [1.0, 2.0, 3.0, 4.0, 5.0, 1.5, 2.5, 3.5, 4.5, 5.5, 0.0, 7.0, 8.0, 9.0, 9.5]
    found = calibrate_certainty(slides)
    assert found.threshold == pytest.approx(np.quantile(margins, 0.1))
    assert (found.method, found.level, found.keeps, found.slides) == ("quantile", 0.1, KEEPS, 3)
    assert (found.unsure, found.sure_right) == (0.0, 1.0)


def test_shares_are_those_of_the_rule_at_the_threshold() -> None:
    slides = [slide(1, 2.0), slide(0, 2.0), slide(0, -0.5, size=50), *[slide(1, 3.0, size=20)] * 5]
    found = calibrate_certainty(slides)
    assert found.threshold == 0.5  # of 5 margins of 0.5, 10 of 2.0 and 25 of 3.0; a sure verdict exceeds it
    assert found.unsure == 1 / 8
    assert found.sure_right == pytest.approx(6 / 7)
    assert (found.smallest_bag, found.largest_bag) == (20, 50)


def test_slides_that_are_read_completely_give_no_more_pairs() -> None:
    slides = [slide(1, 1.0, 2.0, 3.0, 4.0, most_kept=7), slide(1, 5.0, 5.0, 5.0, most_kept=3)]
    found = calibrate_certainty(slides)
    assert found.keeps == (4, 8, 16)
    assert found.threshold == pytest.approx(np.quantile([1.0, 2.0, 5.0], 0.1))


def test_the_risk_bounds_the_sure_and_wrong_verdicts() -> None:
    wrong = [slide(0, margin) for margin in (1.0, 2.0, 3.0)]
    right = [slide(1, 4.0)] * 36
    ladders = [each.ladder(KEEPS) for each in (*wrong, *right)]
    labels = [each.label for each in (*wrong, *right)]
    assert [risk_threshold(ladders, labels, risk) for risk in (0.025, 0.05, 0.075, 0.1, 0.5)] == [3.0, 2.0, 1.0, 0, 0]
    found = calibrate_certainty([*wrong, *right], risk=0.05)
    assert (found.method, found.level, found.threshold) == ("risk", 0.05, 2.0)
    assert found.unsure == pytest.approx(2 / 39)


def test_without_an_error_the_smallest_sufficient_number_of_slides_gives_a_threshold_of_0() -> None:
    assert calibrate_certainty([slide(1, 0.1)] * 19, risk=0.05).threshold == 0


def test_a_threshold_counts_errors_at_higher_thresholds_too() -> None:
    late = slide(0, -1.0, -1.0, 5.0)  # right if it stops early, wrong above a threshold of 1
    assert read_until_sure(late.ladder(KEEPS), 0.5).readings[-1].keep == 8
    ladders = [late.ladder(KEEPS), *[slide(1, 9.0).ladder(KEEPS)] * 18]
    assert risk_threshold(ladders, [0, *[1] * 18], 0.05) == 5.0


@pytest.mark.parametrize(("risk", "slides", "least"), [(0.05, 18, 19), (0.01, 98, 99), (0.3, 2, 3)])
def test_too_few_slides_for_a_risk_raise_an_error(risk: float, slides: int, least: int) -> None:
    with pytest.raises(
        UsageError, match=f"needs at least {least} validation slides with tissue, but there are {slides}"
    ):
        calibrate_certainty([slide(1, 1.0)] * slides, risk=risk)
    assert calibrate_certainty([slide(1, 1.0)] * least, risk=risk).slides == least


@pytest.mark.parametrize("risk", [0.0, 1.0, -0.1, 5.0])
def test_a_risk_outside_0_to_1_raises_an_error(risk: float) -> None:
    with pytest.raises(UsageError, match="above 0 and below 1"):
        check_risk(risk)


def test_no_slides_raise_an_error() -> None:
    with pytest.raises(DataError, match="no slide with tissue"):
        calibrate_certainty([])
