"""Temperature scaling (Guo et al. 2017, section 4.2): a single divisor of the logits before the softmax.

1. Log-probabilities differ from logits by a constant for each slide, which does not change the softmax, so either can
   be used.
2. The loss is the mean cross entropy. It is convex in beta = 1/T, so its derivative increases, and bisection finds its
   only root.
3. With few slides, the temperature is shrunk towards 1: 20 further slides count whose labels are distributed as the
   model's own probabilities, which fit best at T = 1. With n slides, the target of a slide is the mean of its label and
   its probabilities, with weights n and 20.
4. Cross-validation over patients compares the log loss at the fitted temperature with that at 1. T = 1 is kept if the
   mean gain over patients is not above its standard error.
5. The temperature is limited to 0.05..20. A value at either end means that the probabilities carry little information,
   and causes a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from hagmil.errors import DataError
from hagmil.softmax import softmax

_log = logging.getLogger(__name__)
COLDEST, HOTTEST = 0.05, 20.0
_LEAST_PROBABILITY = float(np.finfo(np.float64).tiny)
_OWN_SLIDES = 20
_FOLDS = 5
_STEPS = 80
"""Bisection steps; after 60 the interval has the resolution of float64."""


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.int64], case_ids: Sequence[str]) -> float:
    """Find the temperature at which the probabilities fit the labels best, shrunk towards 1.

    Args:
        probabilities: float64 (slides, classes) at temperature 1, rows sum to 1.
        labels: int64 (slides,).
        case_ids: patient of each slide.

    Returns:
        The temperature; above 1 if the model is overconfident, and 1 if cross-validation shows no gain.

    Raises:
        DataError: there is no slide.
    """
    if not len(labels):
        raise DataError("there are no slides to fit a temperature on")
    temperature = _fit(probabilities, labels)
    if not COLDEST * 1.001 < temperature < HOTTEST / 1.001:  # step 5
        _log.warning(
            "the temperature fitted on %d slides is %.3g, at an end of its range; check the predictions of the model",
            len(labels),
            temperature,
        )
    cases = np.unique(list(case_ids), return_inverse=True)[1]
    return temperature if _has_gain(probabilities, labels, cases) else 1.0


def _fit(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Minimise the loss (steps 1 to 3)."""
    slides, classes = probabilities.shape
    logits = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))  # step 1
    targets = (slides * np.eye(classes)[labels] + _OWN_SLIDES * probabilities) / (slides + _OWN_SLIDES)  # step 3

    def slope(log_beta: float) -> float:
        """Derivative of the loss with respect to beta (step 2)."""
        expected = softmax(logits * math.exp(log_beta))
        return float(((expected - targets) * logits).sum())

    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _has_gain(probabilities: NDArray[np.float64], labels: NDArray[np.int64], cases: NDArray[np.intp]) -> bool:
    """Return whether temperatures fitted on other patients lower the log loss (step 4)."""
    patients = int(cases.max()) + 1
    if patients < 2:
        return False
    gains = np.zeros(len(labels))
    for fitted, held in GroupKFold(min(_FOLDS, patients)).split(probabilities, labels, cases):
        scaled = at_temperature(probabilities[held], _fit(probabilities[fitted], labels[fitted]))
        gains[held] = _losses(probabilities[held], labels[held]) - _losses(scaled, labels[held])
    by_patient = np.bincount(cases, gains) / np.bincount(cases)
    return bool(by_patient.mean() > by_patient.std(ddof=1) / math.sqrt(patients))


def _losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    likely = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(likely, float(np.finfo(np.float64).eps))), np.float64)


def at_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities (slides, classes) after division of their logits by a temperature."""
    return softmax(np.log(np.maximum(probabilities, _LEAST_PROBABILITY)) / temperature)
