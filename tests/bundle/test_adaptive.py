"""Tests of the rule that stops the adaptive cascade."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import ValidationError

from hagmil.bundle import Certainty
from hagmil.bundle.adaptive import Reading, is_sure, margin, pair_margin, read_until_sure, top_rows


def _reading(keep: int, logits: list[float], top_logits: list[float] | None = None) -> Reading:
    return Reading(keep, 10 * keep, np.array(logits, np.float32), np.array(top_logits or logits, np.float32))


def test_margin_is_the_difference_of_the_two_highest_logits() -> None:
    assert margin(np.array([-1.0, 3.0, 2.5])) == 0.5
    assert margin(np.array([2.0, 2.0])) == 0.0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (_reading(4, [0, 3], [0, 2]), _reading(8, [0, 1], [0, 4]), 1.0),
        (_reading(4, [0, 3], [0, 2]), _reading(8, [0, 5], [0, 0.5]), 0.5),
        (_reading(4, [3, 0], [0, 2]), _reading(8, [0, 5], [0, 5]), 0.0),  # the first bag predicts another class
        (_reading(4, [0, 3], [0, 2]), _reading(8, [0, 5], [5, 0]), 0.0),  # the last bag predicts another class
    ],
)
def test_margin_of_two_readings_is_the_smallest_of_four_that_agree(
    before: Reading, after: Reading, expected: float
) -> None:
    assert pair_margin(before, after) == expected
    assert is_sure(before, after, threshold=0.4) == (expected > 0.4)
    assert not is_sure(before, after, threshold=expected)


def test_readings_are_taken_until_two_successive_ones_are_sure() -> None:
    taken = []

    def _readings() -> Iterator[Reading]:
        for keep, top in ((4, 0.5), (8, 2.0), (16, 3.0), (32, 9.0)):
            taken.append(keep)
            yield _reading(keep, [0, 5], [0, top])

    readings, sure = read_until_sure(_readings(), threshold=1.0)

    assert sure
    assert [reading.keep for reading in readings] == taken == [4, 8, 16]


def test_a_slide_without_two_sure_readings_takes_all_readings_and_is_not_sure() -> None:
    few = [_reading(4, [0, 5]), _reading(8, [5, 0]), _reading(16, [0, 5])]

    assert read_until_sure(few, threshold=0.0) == (tuple(few), False)
    assert read_until_sure(few[:1], threshold=0.0) == (tuple(few[:1]), False)


def test_top_rows_keep_the_order_of_the_bag_and_take_the_first_of_equal_scores() -> None:
    attention = np.array([2.0, 5.0, 1.0, 2.0, 2.0], np.float32)

    assert top_rows(attention, 3).tolist() == [0, 1, 3]
    assert top_rows(attention, 9).tolist() == [0, 1, 2, 3, 4]


def test_numbers_of_kept_patches_of_a_calibration_must_grow() -> None:
    fields = {"threshold": 1, "method": "quantile", "level": 0.1, "slides": 9, "smallest_bag": 1, "largest_bag": 9}
    fields |= {"unsure": 0.1, "sure_right": 1}
    assert Certainty.model_validate({**fields, "keeps": [4, 8]}).keeps == (4, 8)
    for keeps in ([8, 4], [4, 4]):
        with pytest.raises(ValidationError, match="keeps must grow"):
            Certainty.model_validate({**fields, "keeps": keeps})
