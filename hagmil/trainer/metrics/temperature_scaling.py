"""Temperature scaling (Guo et al. 2017, section 4.2): a single divisor of the logits before the softmax.

1. Log-probabilities differ from logits by a constant for each slide, which does not change the softmax, so either can
   be used.
2. The loss is the mean cross entropy. It is convex in beta = 1/T, so its derivative increases, and bisection finds its
   only root.
3. If every slide is classified correctly, hard labels have no best temperature: lower is always better. As in Platt
   (1999), labels are smoothed by the rule of succession: with n slides and c classes, the label's class gets
   (n + 1)/(n + c) and every other class 1/(n + c). The effect decreases with the number of slides.
4. The temperature is limited to 0.05..20. A value at either end means that the probabilities carry little information,
   and causes a warning.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import DataError
from hagmil.softmax import softmax

_log = logging.getLogger(__name__)
COLDEST, HOTTEST = 0.05, 20.0
_LEAST_PROBABILITY = float(np.finfo(np.float64).tiny)
_STEPS = 80
"""Bisection steps; after 60 the interval has the resolution of float64."""


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Find the temperature at which the probabilities fit the labels best.

    Args:
        probabilities: float64 (slides, classes) at temperature 1, rows sum to 1.
        labels: int64 (slides,).

    Returns:
        The temperature; above 1 if the model is overconfident.

    Raises:
        DataError: there is no slide.
    """
    slides, classes = probabilities.shape
    if slides == 0:
        raise DataError("there are no slides to fit a temperature on")
    logits = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))  # step 1
    targets = np.full((slides, classes), 1 / (slides + classes))  # step 3
    targets[np.arange(slides), labels] = (slides + 1) / (slides + classes)

    def slope(log_beta: float) -> float:
        """Derivative of the loss with respect to beta (step 2)."""
        expected = softmax(logits * math.exp(log_beta))
        return float(((expected - targets) * logits).sum())

    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    temperature = math.exp(-(low + high) / 2)
    if not COLDEST * 1.001 < temperature < HOTTEST / 1.001:  # step 4
        _log.warning(
            "the temperature fitted on %d slides is %.3g, at an end of its range; check the predictions of the model",
            slides,
            temperature,
        )
    return temperature


def at_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities (slides, classes) after division of their logits by a temperature."""
    return softmax(np.log(np.maximum(probabilities, _LEAST_PROBABILITY)) / temperature)
