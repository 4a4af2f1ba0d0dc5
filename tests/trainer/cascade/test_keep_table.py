"""Verdicts by number of kept patches and by slide size."""

from __future__ import annotations

import numpy as np
import pytest

from hagmil.errors import DataError, UsageError
from hagmil.trainer.cascade.keep_table import check_keeps, held_from, parse_keeps, tabulate_keeps
from hagmil.trainer.cascade.readings import KeepReading, SlideReadings

CLASSES = ("normal", "tumour")


def slide(label: int, coarse_patches: int, **margins: float) -> SlideReadings:
    """A slide whose logit of tumour, minus that of normal, is given for each number: ``k4``, ``k8`` and ``all``."""
    by_keep = {
        None if name == "all" else int(name[1:]): KeepReading(np.array([0, margin], np.float32), None, 10 * place + 10)
        for place, (name, margin) in enumerate(margins.items())
    }
    return SlideReadings(f"slide-{label}-{coarse_patches}", label, coarse_patches, coarse_patches, by_keep)


SLIDES = [
    slide(0, 10, k4=1.0, k8=-2.0, all=-3.0),
    slide(0, 39, k4=-1.0, k8=-4.0, all=-5.0),
    slide(1, 40, k4=2.0, k8=2.5, all=-0.5),
    slide(1, 20, k4=3.0, k8=1.5, all=4.0),
]


def test_a_row_has_the_shares_the_auc_the_patches_and_the_margins_of_its_slides() -> None:
    four, eight, everything = tabulate_keeps(SLIDES, (4, 8), CLASSES, "val").keeps
    assert [row.keep for row in (four, eight, everything)] == [4, 8, None]
    assert [row.right for row in (four, eight, everything)] == [0.75, 1.0, 0.75]
    assert [row.agreement for row in (four, eight, everything)] == [0.5, 0.75, 1.0]
    assert [row.auc for row in (four, eight, everything)] == [1.0, 1.0, 1.0]
    assert [row.patches_read for row in (four, eight, everything)] == [10, 20, 30]
    assert four.margins == {"normal": 0.0, "tumour": 2.5}
    assert everything.margins == {"normal": 4.0, "tumour": pytest.approx(1.75)}


def test_sizes_are_divided_into_ranges_that_begin_at_the_smallest_slide() -> None:
    found = tabulate_keeps(SLIDES, (4, 8), CLASSES, "test")
    assert (found.part, found.slides, found.smallest_bag, found.largest_bag) == ("test", 4, 10, 40)
    small, large = found.sizes
    assert (small.smallest_bag, small.largest_bag, small.keeps[0].slides) == (10, 39, 3)
    assert (large.smallest_bag, large.largest_bag, large.keeps[0].slides) == (40, 40, 1)
    assert large.keeps[0].auc is None
    assert large.keeps[0].margins == {"normal": None, "tumour": 2.0}
    assert [row.agreement for row in large.keeps] == [0, 0, 1]


def test_slides_of_similar_size_have_one_range_which_is_not_repeated() -> None:
    assert tabulate_keeps(SLIDES[:2], (4, 8), CLASSES, "val").sizes == ()


def test_verdicts_hold_from_the_smallest_number_after_which_none_changes() -> None:
    assert held_from(SLIDES, (4, 8)) is None
    assert held_from(SLIDES[:2], (4, 8)) == 8
    assert held_from([SLIDES[1], SLIDES[3]], (4, 8)) == 4
    changing = [slide(1, 9, k4=1.0, k8=-1.0, all=1.0)]
    assert held_from(changing, (4, 8)) is None
    assert held_from(changing, (4,)) == 4


def test_no_slides_raise_an_error() -> None:
    with pytest.raises(DataError, match="no slide with tissue in the val part"):
        tabulate_keeps([], (4, 8), CLASSES, "val")


@pytest.mark.parametrize(("text", "expected"), [("4,8,all", (4, 8)), ("16, 4,4", (4, 16)), ("1", (1,))])
def test_numbers_of_kept_patches_are_parsed(text: str, expected: tuple[int, ...]) -> None:
    assert parse_keeps(text) == expected


@pytest.mark.parametrize("text", ["", "all", "0,4", "four", "-1", "4,,x"])
def test_other_text_raises_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="numbers of kept patches from 1"):
        parse_keeps(text)


def test_models_with_a_single_stage_are_refused() -> None:
    check_keeps("hag-mil", 2)
    with pytest.raises(UsageError, match="model of kind hmil has a single stage, which reads all patches"):
        check_keeps("hmil", 1)
