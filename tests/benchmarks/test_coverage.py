"""The simulation of interval coverage, in a small version."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage import METRICS, Cell, draw, simulate, table, true_values
from hagmil.trainer.metrics.resampled import measure


def test_simulated_cohorts_have_the_stated_area_and_are_calibrated() -> None:
    probabilities, labels = draw(Cell(20_000, 0.15), np.random.default_rng(2))
    found = measure(probabilities, labels)
    assert found.auc[0] == pytest.approx(0.97, abs=0.005)
    assert labels.mean() == pytest.approx(0.15, abs=0.01)
    assert found.calibration_error[0] < 0.01


@pytest.mark.parametrize(
    "cell", [Cell(20, 0.5), Cell(20, 0.15), Cell(50, 0.15), Cell(20, 0.5, slides=4, common=0.5)], ids=str
)
def test_intervals_of_small_cohorts_contain_the_true_value(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.coverage.PATIENTS_OF_TRUTH", 20_000)
    found = simulate(cell, cohorts=25, resamples=20)
    for name in ("auc", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "f1"):
        assert found[name].contained >= 0.92 * found[name].printed, name
        assert found[name].printed >= 0.7 * found[name].cohorts, name
        assert (found[name].narrowest or 0.0) > 0.01, name
    for name in ("log_loss", "calibration_error"):
        assert found[name].printed == 0, name


def test_the_bootstrap_of_a_cohort_of_100_contains_the_true_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.coverage.PATIENTS_OF_TRUTH", 20_000)
    cell = Cell(100, 0.5)
    found = simulate(cell, cohorts=25, resamples=200)
    for name in ("macro_f1", "average_precision", "log_loss", "brier_score"):
        assert found[name].printed >= 24, name
        assert found[name].contained >= 0.92 * found[name].printed, name
    assert table({cell: found}).count("\n") == 2
    assert set(true_values(0.5)) == set(METRICS)
