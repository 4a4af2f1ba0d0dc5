"""Figures that the benchmarks of stability share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.keep_stability import means
from benchmarks.stability import (
    EVERYTHING,
    SlideReadings,
    best_patches_mean,
    certainty,
    margin_threshold,
    read_slide,
    rows_by_keep,
    stored_readings,
)
from hagmil.bundle.adaptive import Reading


def reading(keep: int, margin: float, read: int = 0) -> Reading:
    logits = np.array([0.0, margin])
    return Reading(keep, read, logits, logits)


def slide(label: int, *margins: float) -> SlideReadings:
    """Margins of class 1 with 4, 8 and all patches."""
    keeps = (4, 8, EVERYTHING)
    readings = tuple(
        reading(keep, margin, 10 * place) for place, (keep, margin) in enumerate(zip(keeps, margins, strict=True))
    )
    return SlideReadings("s", label, readings, (1, 2, 7))


def test_rows_give_right_verdicts_and_agreement_for_each_number_of_kept_patches() -> None:
    rows = rows_by_keep([slide(1, -1.0, 2.0, 3.0), slide(0, -1.0, -1.0, 2.0)])
    assert [row["keep"] for row in rows] == [4, 8, None]
    assert [row["right"] for row in rows] == [0.5, 1.0, 0.5]
    assert [row["agreement"] for row in rows] == [0.0, 0.5, 1.0]
    assert [row["patches_read"] for row in rows] == [1.0, 2.0, 7.0]


def test_the_threshold_is_a_quantile_over_pairs_without_the_reading_of_everything() -> None:
    assert margin_threshold([slide(1, 2.0, 3.0, 0.1), slide(1, 5.0, 4.0, 0.1)], level=0.5) == 3.0


def test_sure_verdicts_are_counted() -> None:
    validation = [slide(1, 1.0, 1.0, 1.0)]
    found = certainty(validation, [slide(1, 2.0, 2.0, 0.0), slide(0, 2.0, 3.0, 0.0), slide(1, 0.5, 2.0, 9.0)])
    assert (found["slides"], found["sure"], found["sure_right"], found["patches_read"]) == (3, 2, 1, 10.0)


def test_a_slide_is_read_with_each_number_of_kept_patches() -> None:
    bags = [np.arange(3, dtype=np.float32)[:, None], np.arange(12, dtype=np.float32)[:, None]]

    def run(_index: int, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {"attention": features[:, 0], "logits": np.array([0.0, features.sum()], np.float32)}

    readings, alone = read_slide(bags, (2, None), run, (1, EVERYTHING))
    assert alone == (3 + 4, 3 + 12)
    assert [each.patches_read for each in readings] == [7, 15]
    assert [each.logits[1] for each in readings] == [8 + 9 + 10 + 11, 66]


def test_the_mean_of_the_best_patches_has_the_children_of_the_highest_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.stability.BEST", 1)
    bags = [np.zeros((2, 1), np.float32), np.arange(8, dtype=np.float32)[:, None]]
    mean, read = best_patches_mean(bags, (2, None), np.array([0.0, 1.0], np.float32))
    assert (mean.tolist(), read) == ([5.5], 2 + 4)


def test_readings_in_a_file_are_read_back(tmp_path: Path) -> None:
    made = stored_readings(tmp_path / "r.json", lambda: [slide(1, 1.0, 2.0, 3.0)])

    def never() -> list[SlideReadings]:
        raise AssertionError

    again = stored_readings(tmp_path / "r.json", never)
    assert rows_by_keep(made) == rows_by_keep(again)


def test_means_over_seeds_sum_the_sure_verdicts() -> None:
    sure = {"slides": 2, "sure": 2, "sure_right": 1, "patches_read": 5.0}
    row = {"keep": 4, "right": 1.0, "agreement": 1.0, "patches_read": 5.0}
    runs = [{"sizes": {"2048": {"keeps": [{**row, "right": right}], "certainty": sure}}} for right in (1.0, 0.5)]
    found = means(runs)["2048"]
    assert found["keeps"] == [{**row, "right": 0.75}]
    assert found["certainty"] == {"slides": 4, "sure": 4, "sure_right": 2, "patches_read": 5.0}
