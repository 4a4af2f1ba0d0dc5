"""The page about the stability of the verdict."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import render_stability
from benchmarks.render_stability import (
    RECIPE,
    Curve,
    digit_curves,
    digits_sure,
    digits_table,
    phantoms_sure,
    phantoms_table,
    plot,
)

KEEPS = [
    {"keep": 4, "right": 0.75, "agreement": 0.75, "patches_read": 100.0},
    {"keep": None, "right": 1.0, "agreement": 1.0, "patches_read": 1000.0},
]
SURE = {"threshold": 1.0, "slides": 20, "sure": 16, "sure_right": 15, "patches_read": 120.0}
FOUND: dict[str, Any] = {"keeps": KEEPS, "certainty": SURE}
OTHERS = {"coarse stage alone": {"same": {"right": 0.5, "patches_read": 40.0}}}
DIGITS = {"seed": 0, "validation_loss": 0.1, "cpu_seconds": 7.0, "same": FOUND, "large": FOUND, "others": OTHERS}
PHANTOMS = {"seed": 20, "cpu_seconds": 7.0, "sizes": {"2048": FOUND}}


def test_the_tables_give_every_seed_and_number_of_kept_patches() -> None:
    reports = {RECIPE: {"runs": [DIGITS, DIGITS]}}
    assert digits_table(reports, "same").splitlines()[2] == "| all three | 0 | 75 | 100 | 0.100 |"
    assert "| all three | 2 | training size | 30 of 32 (93.8%) | 20.0% | 120 | 7 |" in digits_sure(reports)


def test_the_tables_of_phantoms_give_agreement() -> None:
    reports = {RECIPE: {"runs": [PHANTOMS, PHANTOMS], "means": {"2048": FOUND}}}
    assert "| all three | agreement | 75/75 | 100/100 |" in phantoms_table(reports, "2048")
    assert "| all three | 2,048 px | 30 of 32 (93.8%) | 20.0% | 120 | 7, 7 |" in phantoms_sure(reports)


def test_a_plot_shows_curves_and_single_methods() -> None:
    curves = digit_curves({RECIPE: {"runs": [DIGITS]}}, "same")
    assert curves == [
        Curve("all three", ((100.0, 75.0), (1000.0, 100.0))),
        Curve("coarse stage alone", ((40.0, 50.0),)),
    ]
    drawn = plot(curves)
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert drawn.count("<polyline") == 1


def test_recipes_without_a_result_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(render_stability, "RESULTS", tmp_path)
    assert render_stability.load("digits") == {}
