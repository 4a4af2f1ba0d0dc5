"""Comparison of verdicts, without slides."""

from __future__ import annotations

import numpy as np
import pytest

from hagmil.errors import ParityError
from hagmil.export.parity.slide_parity import (
    SlideRecord,
    StageRecord,
    compare_slides,
    enforce_slide_parity,
    rank_correlation,
)


def _stage(scores: list[float], kept: int, *, places: list[int] | None = None, name: str = "coarse") -> StageRecord:
    attention = np.array(scores, np.float32)
    at = np.array(places if places is not None else range(len(scores)), np.int64)
    order = np.argsort(-attention, kind="stable")[:kept]
    return StageRecord(name, np.stack([at, at * 0], axis=1), attention, order.astype(np.int64))


def _slide(probability: float, *stages: StageRecord, slide_id: str = "one") -> SlideRecord:
    prediction = "tumour" if probability > 0.5 else "normal"
    return SlideRecord(slide_id, prediction, {"normal": 1 - probability, "tumour": probability}, None, stages)


def _failed(code: str) -> SlideRecord:
    return SlideRecord("bad", None, {}, code, ())


def test_equal_runs_agree_completely() -> None:
    runs = [_slide(0.9, _stage([3, 1, 2, 0], 2)), _failed("no_tissue")]
    parity = compare_slides(runs, runs, what="two slides", rounded=True)

    assert (parity.slides, parity.with_verdict, parity.equal_verdicts, parity.different) == (2, 1, 1, ())
    assert (parity.largest_change, parity.least_margin) == (0.0, pytest.approx(0.8))
    (stage,) = parity.stages
    assert (stage.kept, stage.chosen_on, stage.kept_alike, stage.least_alike, stage.read_alike) == (2, 1, 1, 1, 1)
    assert stage.least_correlation == pytest.approx(1.0)
    enforce_slide_parity(parity)


def test_kept_patches_are_compared_by_coordinates() -> None:
    source = [_slide(0.9, _stage([3, 2, 1, 0], 2, places=[10, 20, 30, 40]))]
    graphs = [_slide(0.9, _stage([0, 1, 2.5, 2], 2, places=[40, 30, 20, 10]))]
    (stage,) = compare_slides(source, graphs, what="", rounded=False).stages

    assert stage.kept_alike == 1.0
    assert stage.least_correlation == pytest.approx(0.8)  # 10 and 20 changed ranks


def test_a_stage_that_keeps_other_patches_is_named_in_the_error() -> None:
    source = [_slide(0.9, _stage([3, 2, 1, 0], 2)) for _ in range(2)]
    graphs = [_slide(0.9, _stage([3, 2, 1, 0], 2)), _slide(0.9, _stage([3, 0, 1, 2], 2))]
    parity = compare_slides(source, graphs, what="", rounded=False)

    assert (parity.stages[0].kept_alike, parity.stages[0].least_alike) == (0.75, 0.5)
    with pytest.raises(ParityError, match=r"stage coarse keeps other patches .* 75\.00% of 4 agree, at least 99% must"):
        enforce_slide_parity(parity)


def test_patches_read_by_one_run_only_are_counted_but_not_ranked() -> None:
    source = [_slide(0.9, _stage([3, 2, 1], 0, places=[1, 2, 3], name="fine"))]
    graphs = [_slide(0.9, _stage([3, 2, 9], 0, places=[1, 2, 4], name="fine"))]
    parity = compare_slides(source, graphs, what="", rounded=False)

    assert parity.stages[0].kept_alike is None
    assert parity.stages[0].read_alike == pytest.approx(2 / 3)
    assert parity.stages[0].least_correlation == pytest.approx(1.0)
    enforce_slide_parity(parity)


def test_a_different_verdict_is_refused_with_the_slide_and_the_change() -> None:
    source = [_slide(0.6, _stage([1, 0], 1), slide_id="a"), _slide(0.9, _stage([1, 0], 1), slide_id="b")]
    graphs = [_slide(0.4, _stage([1, 0], 1), slide_id="a"), _slide(0.8, _stage([1, 0], 1), slide_id="b")]
    parity = compare_slides(source, graphs, what="", rounded=False)

    assert parity.different == ("a",)
    assert parity.largest_change == pytest.approx(0.2)
    with pytest.raises(
        ParityError, match=r"1 of 2 slides have another verdict .*\(a\); probabilities change by up to 0\.2"
    ):
        enforce_slide_parity(parity)


def test_a_slide_that_fails_with_the_graphs_only_is_a_difference() -> None:
    source = [_slide(0.9, _stage([1, 0], 1)), _slide(0.9, _stage([1, 0], 1), slide_id="bad")]
    parity = compare_slides(source, [source[0], _failed("not_finite")], what="", rounded=False)

    assert parity.different == ("bad",)
    assert parity.equal_verdicts == 1


def test_a_comparison_without_any_verdict_is_an_error() -> None:
    with pytest.raises(ParityError, match=r"no slide of 2 phantoms has a verdict to compare \(no_tissue\)"):
        compare_slides([_failed("no_tissue")], [_failed("no_tissue")], what="2 phantoms", rounded=False)


def test_equal_values_get_their_mean_rank() -> None:
    def ranked(one: list[float], other: list[float]) -> float | None:
        return rank_correlation(np.array(one, np.float32), np.array(other, np.float32))

    assert ranked([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert ranked([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert ranked([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert ranked([1, 1], [1, 2]) is None
    assert ranked([1], [1]) is None
