"""Warnings for slides and numbers of kept patches with which a bundle was not tested."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.slide_warnings import WARNING_CODES, slide_warnings, warning_code
from tests.conftest import REPOSITORY
from tests.runtime.calibrated import calibrated, with_tested


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


def _outcomes(counts: Sequence[int], keep: int) -> list[StageOutcome]:
    """Outcomes of stages with these numbers of patches."""
    outcomes = []
    for index, count in enumerate(counts):
        kept = np.arange(min(keep, count) if index < len(counts) - 1 else 0)
        empty = np.zeros(count, np.float32)
        outcomes.append(StageOutcome(None, np.zeros((count, 2), np.int64), {}, empty, kept))  # type: ignore[arg-type]
    return outcomes


def _codes(model: LoadedModel, keep: int, coarsest: int = 500, *, adaptive: bool = False) -> list[str]:
    manifest, outcomes = model.bundle.manifest, _outcomes((coarsest, 4 * keep, 4 * keep), keep)
    return [warning_code(one) for one in slide_warnings(manifest, 0.5, outcomes, keep=keep, adaptive=adaptive)]


@pytest.mark.parametrize(
    ("keeps", "held_from", "keep", "warned"),
    [
        ((4, 8, None), 8, 8, False),
        ((4, 8, None), 8, 4, True),  # the verdicts did not hold
        ((4, 8, None), 8, 20, False),  # between 8 and all
        ((4, 8, 64), 8, 20, False),  # between 8 and 64
        ((4, 8, 64), 8, 65, True),
        ((4, 8, None), None, 64, True),
        ((4, 8, None), None, 500, False),  # every patch of the slide
    ],
)
def test_keep_untested_is_given_below_and_above_the_numbers_for_which_verdicts_held(
    keeps: Sequence[int | None], held_from: int | None, keep: int, warned: bool, model: LoadedModel
) -> None:
    bundle = with_tested(model, keeps=keeps, held_from=held_from)
    counts = (500, 2000, 8000) if keep < 500 else (500, 500, 500)
    found = slide_warnings(bundle.bundle.manifest, 0.5, _outcomes(counts, keep), keep=keep)
    assert [warning_code(one) for one in found] == (["keep_untested"] if warned else [])


def test_the_numbers_of_the_manifest_are_compared_if_none_is_given(model: LoadedModel) -> None:
    (warning,) = slide_warnings(with_tested(model).bundle.manifest, 0.5, _outcomes((500, 8, 8), 2))
    assert warning.startswith("keep_untested: 2 kept patches are too few")
    assert "from 8 on" in warning


def test_slides_larger_than_those_of_the_test_and_of_the_calibration_are_reported(model: LoadedModel) -> None:
    both = calibrated(with_tested(model, largest_bag=400), largest_bag=499)
    assert _codes(both, 8) == ["larger_than_tested"]
    assert _codes(both, 8, adaptive=True) == ["larger_than_tested", "larger_than_calibrated"]
    assert _codes(both, 8, coarsest=400, adaptive=True) == []


def test_an_adaptive_run_does_not_warn_about_its_numbers_of_kept_patches(model: LoadedModel) -> None:
    assert _codes(calibrated(with_tested(model)), 4, adaptive=True) == []


def test_a_bundle_without_the_sections_gives_no_warnings(model: LoadedModel) -> None:
    assert _codes(model, 1, coarsest=10**6) == []


def test_every_warning_is_documented() -> None:
    page = (REPOSITORY / "docs" / "errors.md").read_text()
    table = page.partition("## Warnings")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(WARNING_CODES)
