"""Intervals of proportions of slides, such as sensitivity, clustered by patient.

1. The interval is that of Clopper and Pearson (1934) with an effective number of slides (Korn and Graubard 1998): the
   number of independent slides that would give the proportion the same variance.
2. The variance is that of a ratio of sums over patients (Cochran 1977, section 6.3). Its quotient with that of
   independent slides, at least 1, divides the number of slides. A quotient of t quantiles accounts for the number of
   patients from which the variance is estimated.
3. If all slides agree, their correlation within a patient cannot be estimated and is taken as 1: with m slides of a
   patient, the effective number is (sum of m)² / (sum of m²) (Kish 1965), the number of patients if each has as many.
4. F1 is 2J / (1 + J), where J = TP / (TP + FP + FN) is a proportion of the slides that have or are predicted to have
   the class; the interval of J gives that of F1.
5. The mean of several proportions gets the MOVER interval (Zou and Donner 2008): the distances from the means to the
   limits add like standard deviations of independent proportions, or linearly if patients occur in several of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hagmil.trainer.metrics.estimate import TAILS, Estimate, without_interval

SINGLE_PATIENT = "slides of a single patient"


def estimate_proportion(hits: NDArray[np.bool_], counted: NDArray[np.bool_], cases: NDArray[np.intp]) -> Estimate:
    """Estimate the share of the counted slides that are hits (steps 1 to 3).

    Args:
        hits: bool (slides,); only counted slides matter.
        counted: bool (slides,), the slides of the denominator.
        cases: int (slides,), index of the patient.
    """
    slides_of = np.bincount(cases[counted]).astype(np.float64)
    hits_of = np.bincount(cases[counted], hits[counted])[slides_of > 0].astype(np.float64)
    slides_of = slides_of[slides_of > 0]
    if not len(slides_of):
        return without_interval(np.nan, "")
    value = float(hits_of.sum() / slides_of.sum())
    if len(slides_of) == 1:
        return without_interval(value, SINGLE_PATIENT)
    size = effective_slides(hits_of, slides_of)
    low = stats.beta.ppf(TAILS[0], value * size, (1 - value) * size + 1) if value > 0 else 0.0
    high = stats.beta.ppf(TAILS[1], value * size + 1, (1 - value) * size) if value < 1 else 1.0
    return Estimate(value=value, low=float(low), high=float(high), method="clopper-pearson")


def effective_slides(hits: NDArray[np.float64], slides: NDArray[np.float64]) -> float:
    """Return the effective number of slides (steps 2 and 3).

    Args:
        hits: float64 (patients,), hits of each patient; at least two patients.
        slides: float64 (patients,), slides of each patient, at least 1.
    """
    count, patients = float(slides.sum()), len(slides)
    share = float(hits.sum()) / count
    if share in (0.0, 1.0):
        return count**2 / float(np.square(slides).sum())
    by_patient = patients / (patients - 1) * float(np.square(hits - share * slides).sum())
    independent = count / (count - 1) * count * share * (1 - share)
    quantiles = np.atleast_1d(stats.t.ppf(TAILS[1], [count - 1, patients - 1]))
    return count / max(1.0, by_patient / independent) * float(quantiles[0] / quantiles[1]) ** 2


def estimate_f1(of_class: NDArray[np.bool_], predicted: NDArray[np.bool_], cases: NDArray[np.intp]) -> Estimate:
    """Estimate the F1 of a class (step 4).

    Args:
        of_class: bool (slides,), whether the label is the class.
        predicted: bool (slides,), whether the prediction is the class.
        cases: int (slides,), index of the patient.

    Returns:
        The estimate; undefined for a class without slides.
    """
    if not of_class.any():
        return without_interval(np.nan, "")
    share = estimate_proportion(of_class & predicted, of_class | predicted, cases)
    ends = {
        name: None if end is None else 2 * end / (1 + end) for name, end in share if name in ("value", "low", "high")
    }
    return share.model_copy(update=ends)


def mean_of_proportions(parts: Sequence[Estimate], *, overlap: bool) -> Estimate:
    """Estimate the mean of several proportions (step 5).

    Args:
        parts: the proportions.
        overlap: whether a patient has slides of several proportions.
    """
    values = [part.value for part in parts if part.value is not None]
    if len(values) < len(parts):
        return without_interval(np.nan, "")
    mean = float(np.mean(values))
    limits = [(part.low, part.high) for part in parts if part.low is not None and part.high is not None]
    if len(limits) < len(parts):
        return without_interval(mean, f"a class has only {SINGLE_PATIENT}")
    away = np.abs(np.array(limits) - np.array(values)[:, np.newaxis])  # (parts, 2)
    below, above = away.mean(axis=0) if overlap else np.sqrt(np.square(away).sum(axis=0)) / len(parts)
    return Estimate(value=mean, low=mean - float(below), high=mean + float(above), method="mover")
