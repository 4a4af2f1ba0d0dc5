"""Metrics of predictions with 95 % bootstrap intervals over patients.

1. Slides of one patient are not independent. The bootstrap therefore draws patients with replacement, as many as there
   are; each comes with all its slides.
2. The draw is not stratified by class: the number of patients of each class in a cohort is random too, and accuracy,
   macro F1 and the calibration error depend on it.
3. A resample may therefore lack a class, which leaves some metrics undefined. It is excluded from the intervals of
   these metrics and counted.
4. The interval contains the central 95 % of the resamples' values (percentiles). There is none with a single patient,
   or if more than half of the resamples leave the metric undefined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.errors import DataError
from hagmil.trainer.metrics.resampled import CALIBRATION_BINS, Measures, confidence_bins, measure

CONFIDENCE = 0.95
RESAMPLES = 2000
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


class Estimate(FrozenModel):
    """One metric and its interval."""

    value: float | None = Field(description="null if the slides leave it undefined")
    low: float | None = Field(description="lower end of the 95 % interval; null without one")
    high: float | None = Field(description="upper end of the interval")
    undefined_resamples: int = Field(ge=0, description="resamples that leave it undefined; not in the interval")


class ClassAssessment(FrozenModel):
    """Metrics of one class against the rest."""

    name: str
    slides: int = Field(description="slides of the class")
    auc: Estimate
    sensitivity: Estimate
    specificity: Estimate
    f1: Estimate


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
    by_class: tuple[ClassAssessment, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(description="slides by label (row) and prediction (column)")
    confusion_share: tuple[tuple[Estimate, ...], ...] = Field(description="the same as shares of each label's slides")
    calibration: tuple[CalibrationBin, ...]


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
    patients = int(cases.max()) + 1
    point = measure(probabilities, labels)
    chunks = [measure(probabilities, labels, weights) for weights in _draws(cases, resamples, seed)]  # step 1
    replicates = Measures(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))

    def estimate(name: str, *place: int) -> Estimate:
        values: NDArray[np.float64] = getattr(replicates, name)[:, *place]
        return _estimate(float(getattr(point, name)[0, *place]), values, patients)

    count = len(classes)
    return Assessment(
        classes=tuple(classes),
        slides=len(scores),
        patients=patients,
        resamples=resamples,
        auc=estimate("auc"),
        accuracy=estimate("accuracy"),
        balanced_accuracy=estimate("balanced_accuracy"),
        macro_f1=estimate("macro_f1"),
        calibration_error=estimate("calibration_error"),
        log_loss=estimate("log_loss"),
        by_class=tuple(
            ClassAssessment(
                name=name,
                slides=int((labels == index).sum()),
                auc=estimate("class_auc", index),
                sensitivity=estimate("sensitivity", index),
                specificity=estimate("specificity", index),
                f1=estimate("f1", index),
            )
            for index, name in enumerate(classes)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in point.confusion[0]),
        confusion_share=tuple(tuple(estimate("confusion_share", i, j) for j in range(count)) for i in range(count)),
        calibration=_calibration(probabilities, labels),
    )


def estimate_share(
    flags: Sequence[bool], case_ids: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimate the share of slides with some property, with its interval over patients.

    Args:
        flags: whether each slide has the property; at least one slide.
        case_ids: patient of each slide.
        resamples: number of bootstrap resamples, at least 1.
        seed: seed of the bootstrap.
    """
    values = np.asarray(flags, np.float64)
    cases = np.unique(list(case_ids), return_inverse=True)[1]
    shares = [weights @ values / weights.sum(axis=1) for weights in _draws(cases, resamples, seed)]
    return _estimate(float(values.mean()), np.concatenate(shares), int(cases.max()) + 1)


def probability_table(scores: Sequence[ScoredSlide]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities, float64 (slides, classes), and labels, int64 (slides,)."""
    probabilities = np.array([score.probabilities for score in scores], np.float64)
    return probabilities, np.array([score.label for score in scores], np.int64)


def _draws(cases: NDArray[np.intp], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw step 1's weights (resamples, slides) in chunks; the chunk size does not change the draws."""
    generator = np.random.default_rng(seed)
    patients = int(cases.max()) + 1
    chunk = max(1, _CHUNK_CELLS // len(cases))
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(patients, np.full(patients, 1 / patients), size=min(chunk, resamples - start))
        yield drawn[:, cases].astype(np.float64)  # (resamples, patients) -> (resamples, slides)


def _estimate(value: float, replicates: NDArray[np.float64], patients: int) -> Estimate:
    """Compute the interval (steps 3 and 4)."""
    defined = replicates[~np.isnan(replicates)]
    low = high = None
    if patients > 1 and not np.isnan(value) and 2 * len(defined) >= len(replicates):
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(end) for end in np.quantile(defined, [tail, 1 - tail]))
    return Estimate(
        value=None if np.isnan(value) else value,
        low=low,
        high=high,
        undefined_resamples=len(replicates) - len(defined),
    )


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
