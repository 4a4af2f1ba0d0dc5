"""Metrics of predictions with 95 % intervals over patients.

Slides of one patient are not independent, so every interval is clustered by patient.

1. Proportions (accuracy, sensitivity, specificity, shares), F1 and balanced accuracy:
   :mod:`hagmil.trainer.metrics.proportion_interval`.
2. Areas under ROC curves: :mod:`hagmil.trainer.metrics.auc_interval`.
3. Macro F1, log loss, Brier score and average precision: BCa bootstrap (Efron 1987) over patients, each with all its
   slides, not stratified by class. With fewer than 30 patients of a class, these intervals contain the true value too
   seldom (``benchmarks/coverage.py``), and none is given. There is none either if all resamples give the same value.
4. Expected calibration error: no interval, because the estimate is biased upwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats

from hagmil._models import FrozenModel
from hagmil.errors import DataError
from hagmil.trainer.metrics.auc_interval import class_auc, estimate_auc
from hagmil.trainer.metrics.estimate import CONFIDENCE, Estimate, without_interval
from hagmil.trainer.metrics.proportion_interval import estimate_f1, estimate_proportion, mean_of_proportions
from hagmil.trainer.metrics.resampled import CALIBRATION_BINS, confidence_bins, measure

RESAMPLES = 2000
LEAST_PATIENTS = 30
"""Patients of each class from which on bootstrap intervals keep their coverage."""
_BIASED = "the estimate is biased upwards, so that an interval would seldom contain the true value"
_DEGENERATE = "the bootstrap gives no interval, because nearly all resamples have the same value"
_CHUNK_CELLS = 4_000_000
"""Resamples times slides that are processed at once."""


@dataclass(frozen=True, slots=True)
class ScoredSlide:
    """Label and predicted probabilities of a slide.

    Args:
        slide_id: the slide.
        case_id: its patient.
        label: index of its class.
        probabilities: probability of every class.
    """

    slide_id: str
    case_id: str
    label: int
    probabilities: tuple[float, ...]


class ClassAssessment(FrozenModel):
    """Metrics of one class against the rest."""

    name: str
    slides: int = Field(description="slides of the class")
    auc: Estimate
    sensitivity: Estimate
    specificity: Estimate
    f1: Estimate
    average_precision: Estimate


class CalibrationBin(FrozenModel):
    """The slides with a predicted probability above ``low`` and up to ``high``."""

    low: float
    high: float
    slides: int
    probability: float | None = Field(description="mean probability of the predictions; null without slides")
    accuracy: float | None


class Assessment(FrozenModel):
    """All metrics of one set of predictions."""

    classes: tuple[str, ...]
    slides: int
    patients: int
    resamples: int
    auc: Estimate = Field(description="area under the ROC curve, one against rest, macro average")
    accuracy: Estimate
    balanced_accuracy: Estimate = Field(description="mean sensitivity of all classes")
    macro_f1: Estimate
    calibration_error: Estimate = Field(description=f"expected calibration error, {CALIBRATION_BINS} equal bins")
    log_loss: Estimate = Field(description="mean cross entropy")
    brier_score: Estimate = Field(description="mean squared error, summed over classes; half of it with two classes")
    average_precision: Estimate = Field(description="one against rest, macro average")
    by_class: tuple[ClassAssessment, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(description="slides by label (row) and prediction (column)")
    confusion_share: tuple[tuple[Estimate, ...], ...] = Field(description="the same as shares of each label's slides")
    calibration: tuple[CalibrationBin, ...]

    def totals(self) -> dict[str, Estimate]:
        """The metrics over all classes, by the names that reports show."""
        return {
            "AUC, macro": self.auc,
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "macro F1": self.macro_f1,
            "average precision, macro": self.average_precision,
            "log loss": self.log_loss,
            "Brier score": self.brier_score,
            "expected calibration error": self.calibration_error,
        }


def assess_with_intervals(
    scores: Sequence[ScoredSlide], classes: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Assessment:
    """Compute the metrics of predictions with their intervals.

    Args:
        scores: at least one slide.
        classes: names in the order of the probabilities.
        resamples: number of bootstrap resamples, at least 1.
        seed: seed of the bootstrap; the same seed and slides give the same intervals.

    Raises:
        DataError: there is no slide.
    """
    if not scores:
        raise DataError("no slide has a prediction to assess")
    probabilities, labels = probability_table(scores)
    cases = np.unique([score.case_id for score in scores], return_inverse=True)[1]
    predictions = probabilities.argmax(axis=1)
    numbers = range(len(classes))
    everything = np.ones(len(labels), np.bool_)
    areas = [class_auc(probabilities[:, index], labels == index, cases) for index in numbers]
    sensitivity = [estimate_proportion(predictions == index, labels == index, cases) for index in numbers]
    specificity = [estimate_proportion(predictions != index, labels != index, cases) for index in numbers]
    overlap = len(np.unique(np.stack([cases, labels]), axis=1).T) > cases.max() + 1
    booted = _bootstrap(probabilities, labels, cases, resamples=resamples, seed=seed)
    point = measure(probabilities, labels)
    return Assessment(
        classes=tuple(classes),
        slides=len(scores),
        patients=int(cases.max()) + 1,
        resamples=resamples,
        auc=estimate_auc(areas[1:] if len(classes) == 2 else areas),
        accuracy=estimate_proportion(predictions == labels, everything, cases),
        balanced_accuracy=mean_of_proportions(sensitivity, overlap=overlap),
        macro_f1=booted[0],
        calibration_error=without_interval(float(point.calibration_error[0]), _BIASED),
        log_loss=booted[1],
        brier_score=booted[2],
        average_precision=booted[3],
        by_class=tuple(
            ClassAssessment(
                name=name,
                slides=int((labels == index).sum()),
                auc=estimate_auc([areas[index]]),
                sensitivity=sensitivity[index],
                specificity=specificity[index],
                f1=estimate_f1(labels == index, predictions == index, cases),
                average_precision=booted[4 + index],
            )
            for index, name in enumerate(classes)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in point.confusion[0]),
        confusion_share=tuple(
            tuple(estimate_proportion(predictions == j, labels == i, cases) for j in numbers) for i in numbers
        ),
        calibration=_calibration(probabilities, labels),
    )


def estimate_share(flags: Sequence[bool], case_ids: Sequence[str]) -> Estimate:
    """Estimate the share of slides with some property, with its interval over patients.

    Args:
        flags: whether each slide has the property; at least one slide.
        case_ids: patient of each slide.
    """
    cases = np.unique(list(case_ids), return_inverse=True)[1]
    return estimate_proportion(np.asarray(flags, np.bool_), np.ones(len(cases), np.bool_), cases)


def probability_table(scores: Sequence[ScoredSlide]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities, float64 (slides, classes), and labels, int64 (slides,)."""
    probabilities = np.array([score.probabilities for score in scores], np.float64)
    return probabilities, np.array([score.label for score in scores], np.int64)


def _bootstrap(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], cases: NDArray[np.intp], *, resamples: int, seed: int
) -> list[Estimate]:
    """Estimate step 3's metrics: macro F1, log loss, Brier score, average precision, and that of each class."""
    patients = int(cases.max()) + 1

    def statistic(drawn: NDArray[np.intp], axis: int = -1) -> NDArray[np.float64]:
        """Compute the metrics (metrics, resamples) of patients, int (resamples, patients) or (patients,)."""
        rows = np.atleast_2d(np.moveaxis(drawn, axis, -1))
        places = rows + patients * np.arange(len(rows))[:, np.newaxis]
        times = np.bincount(places.ravel(), minlength=patients * len(rows)).reshape(len(rows), patients)
        found = measure(probabilities, labels, times[:, cases].astype(np.float64))
        columns = [found.macro_f1, found.log_loss, found.brier_score, found.average_precision]
        values = np.stack([*columns, *found.class_average_precision.T])
        return values if drawn.ndim > 1 else values[:, 0]

    values = statistic(np.arange(patients))
    lacking = _lacking(labels, cases)
    if lacking:
        return [without_interval(float(value), lacking) for value in values]
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):  # of equal resamples
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (np.arange(patients),),
            statistic,
            n_resamples=resamples,
            batch=max(1, _CHUNK_CELLS // len(cases)),
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return [
        Estimate(value=float(value), low=float(low), high=float(high), method="bca")
        if low < high  # False for NaN
        else without_interval(float(value), _DEGENERATE)
        for value, low, high in zip(values, np.atleast_1d(interval.low), np.atleast_1d(interval.high), strict=True)
    ]


def _lacking(labels: NDArray[np.int64], cases: NDArray[np.intp]) -> str:
    """Return why the bootstrap is not reliable; empty if it is."""
    fewest = min(len(np.unique(cases[labels == label])) for label in np.unique(labels))
    if fewest >= LEAST_PATIENTS:
        return ""
    return f"a class has only {fewest} patients; with fewer than {LEAST_PATIENTS}, bootstrap intervals are too narrow"


def _calibration(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[CalibrationBin, ...]:
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of_slide = confidence_bins(confidence)
    bins = []
    for index in range(CALIBRATION_BINS):
        inside = bin_of_slide == index
        slides = int(inside.sum())
        bins.append(
            CalibrationBin(
                low=index / CALIBRATION_BINS,
                high=(index + 1) / CALIBRATION_BINS,
                slides=slides,
                probability=float(confidence[inside].mean()) if slides else None,
                accuracy=float(correct[inside].mean()) if slides else None,
            )
        )
    return tuple(bins)
