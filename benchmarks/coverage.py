"""Coverage of the 95 % intervals of evaluation reports, over simulated cohorts.

    python -m benchmarks.coverage --cohorts 300

1. Each patient has the class "positive" with a given probability, independently of the others; cohorts of a single
   class are drawn again.
2. The score of a slide is normal with a variance of 1 and a mean of 0 (negative) or d (positive), where d gives an area
   under the ROC curve of 0.97. The probabilities are the true ones given the score, so the model is calibrated.
3. With several slides of a patient, half of the variance of the scores is common to them.
4. The true value of each metric is that of a cohort of 400,000 patients; the true calibration error is 0.
5. Coverage is the share of intervals that contain the true value, of the cohorts whose report prints an interval.

Writes benchmarks/results/coverage.json and the table in docs/benchmarks-coverage.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hagmil.trainer.metrics.bootstrap import Assessment, ScoredSlide, assess_with_intervals
from hagmil.trainer.metrics.estimate import Estimate
from hagmil.trainer.metrics.resampled import measure

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks-coverage.md"
AUC = 0.97
SIZES = (20, 50, 200)
SHARES = (0.5, 0.15)
PATIENTS_OF_TRUTH = 400_000
METRICS = (
    "auc", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "f1", "macro_f1", "average_precision",
    "log_loss", "brier_score", "calibration_error",
)  # fmt: skip
_BEGIN, _END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind of cohort.

    Args:
        patients: number of patients.
        share: probability of the positive class.
        slides: slides of each patient.
        common: share of the scores' variance that is common to the slides of a patient.
    """

    patients: int
    share: float
    slides: int = 1
    common: float = 0.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """Result of one metric in one cell.

    Args:
        cohorts: number of cohorts.
        printed: cohorts with an interval.
        contained: cohorts whose interval contains the true value.
        narrowest: smallest width of an interval; None if none is printed.
    """

    cohorts: int
    printed: int
    contained: int
    narrowest: float | None


CELLS = tuple(
    Cell(patients, share, slides, common)
    for slides, common in ((1, 0.0), (4, 0.5))
    for share in SHARES
    for patients in SIZES
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=300, help="simulated cohorts of each cell")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples of each cohort")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "coverage.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown page whose table is replaced")
    arguments = parser.parse_args()
    found = {}
    for cell in CELLS:
        found[cell] = simulate(cell, cohorts=arguments.cohorts, resamples=arguments.resamples)
        print(_row(cell, found[cell]), flush=True)
    cells = [
        {**asdict(cell), "metrics": {name: asdict(each) for name, each in metrics.items()}}
        for cell, metrics in found.items()
    ]
    text = json.dumps({"auc": AUC, "resamples": arguments.resamples, "cells": cells}, indent=1)
    arguments.out.write_text(text + "\n")
    page = arguments.page.read_text()
    before, after = page.partition(_BEGIN)[0], page.partition(_END)[2]
    arguments.page.write_text(f"{before}{_BEGIN}\n{table(found)}\n{_END}{after}")


def draw(cell: Cell, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw a cohort (steps 1 to 3).

    Returns:
        Probabilities, float64 (slides, 2), and labels, int64 (slides,); the slides of a patient follow one another.
    """
    labels = (generator.random(cell.patients) < cell.share).astype(np.int64)
    while not 0 < labels.sum() < cell.patients:
        labels = (generator.random(cell.patients) < cell.share).astype(np.int64)
    distance = float(np.sqrt(2) * stats.norm.ppf(AUC))
    noise = np.sqrt(1 - cell.common) * generator.normal(size=(cell.patients, cell.slides))
    noise += np.sqrt(cell.common) * generator.normal(size=(cell.patients, 1))
    scores = (noise + distance * labels[:, np.newaxis]).ravel()  # (patients, slides) -> (patients * slides,)
    odds = distance * scores - distance**2 / 2 + np.log(cell.share / (1 - cell.share))
    positive = 1 / (1 + np.exp(-odds))
    return np.stack([1 - positive, positive], axis=1), labels.repeat(cell.slides)


def true_values(share: float) -> dict[str, float]:
    """Return the value of each metric for a probability of the positive class (step 4)."""
    found = measure(*draw(Cell(PATIENTS_OF_TRUTH, share), np.random.default_rng(0)))
    positive = {name: float(getattr(found, name)[0, 1]) for name in ("sensitivity", "specificity", "f1")}
    shared = {name: float(getattr(found, name)[0]) for name in METRICS if name not in positive}
    return {**shared, **positive, "auc": AUC, "calibration_error": 0.0}


def estimates(found: Assessment) -> dict[str, Estimate]:
    """Return the estimates of :data:`METRICS`; those of a class are of the positive one."""
    one = found.by_class[1]
    return {name: getattr(one if name in ("sensitivity", "specificity", "f1") else found, name) for name in METRICS}


def simulate(cell: Cell, *, cohorts: int, resamples: int, seed: int = 1) -> dict[str, Coverage]:
    """Count the intervals that contain the true value (step 5).

    Args:
        cell: the kind of cohort.
        cohorts: number of cohorts.
        resamples: bootstrap resamples of each.
        seed: seed of the cohorts.

    Returns:
        The coverage of each metric.
    """
    truth, generator = true_values(cell.share), np.random.default_rng(seed)
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in METRICS}
    for _ in range(cohorts):
        probabilities, labels = draw(cell, generator)
        scores = [
            ScoredSlide(f"{place}", f"{place // cell.slides}", int(label), tuple(row))
            for place, (row, label) in enumerate(zip(probabilities.tolist(), labels, strict=True))
        ]
        found = assess_with_intervals(scores, ("negative", "positive"), resamples=resamples)
        for name, estimate in estimates(found).items():
            if estimate.low is not None and estimate.high is not None:
                ends[name].append((estimate.low, estimate.high))
    return {
        name: Coverage(
            cohorts=cohorts,
            printed=len(pairs),
            contained=sum(low <= truth[name] <= high for low, high in pairs),
            narrowest=min((high - low for low, high in pairs), default=None),
        )
        for name, pairs in ends.items()
    }


def table(found: dict[Cell, dict[str, Coverage]]) -> str:
    """Render the coverage as a Markdown table."""
    heads = ["slides per patient", "positive", "patients", *(name.replace("_", " ") for name in METRICS)]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*rows, *(_row(cell, metrics) for cell, metrics in found.items())])


def _row(cell: Cell, metrics: dict[str, Coverage]) -> str:
    cells: Sequence[str] = [_percent(metrics[name]) for name in METRICS]
    return f"| {cell.slides} | {cell.share:.0%} | {cell.patients} | {' | '.join(cells)} |"


def _percent(coverage: Coverage) -> str:
    if coverage.printed == 0:
        return "none"
    percent = f"{100 * coverage.contained / coverage.printed:.1f}"
    return percent if coverage.printed == coverage.cohorts else f"{percent} ({coverage.printed})"


if __name__ == "__main__":
    main()
