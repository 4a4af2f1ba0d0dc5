"""Temperature scaling (Guo et al. 2017, section 4.2): one number that logits are divided by before the softmax.

1. Log-probabilities are logits up to a constant a slide, which the softmax does not see: either will do.
2. The loss is the mean cross entropy. In beta = 1/T it is convex, so its derivative rises, and the one place
   where it is 0 is found by bisection.
3. Where every slide is classified correctly, plain labels have no best temperature: the colder, the better. As
   Platt (1999) does, labels are smoothed by the rule of succession: with n slides and c classes, the label's
   class has (n + 1)/(n + c), every other 1/(n + c). The more slides, the less it matters.
4. The temperature is held between 0.05 and 20; an end of that range means that the model's probabilities say
   little, and is warned of.
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
"""Halvings of the range; after 60 it is as narrow as float64 can tell."""


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature at which probabilities fit the labels best.

    Args:
        probabilities: float64 (slides, classes) at temperature 1, rows sum to 1.
        labels: int64 (slides,).

    Returns:
        The temperature, above 0; above 1 where the model is too sure of itself.

    Raises:
        DataError: there is no slide.
    """
    slides, classes = probabilities.shape
    if slides == 0:
        raise DataError("there is no slide to fit a temperature on")
    logits = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))  # step 1
    targets = np.full((slides, classes), 1 / (slides + classes))  # step 3
    targets[np.arange(slides), labels] = (slides + 1) / (slides + classes)

    def slope(log_beta: float) -> float:
        """Step 2: the loss's derivative by beta."""
        expected = softmax(logits * math.exp(log_beta))
        return float(((expected - targets) * logits).sum())

    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    temperature = math.exp(-(low + high) / 2)
    if not COLDEST * 1.001 < temperature < HOTTEST / 1.001:  # step 4
        _log.warning(
            "the temperature fitted on %d slides is %.3g, an end of its range: look at the verdicts first",
            slides,
            temperature,
        )
    return temperature


def at_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities (slides, classes) as they are when the logits are divided by a temperature."""
    return softmax(np.log(np.maximum(probabilities, _LEAST_PROBABILITY)) / temperature)
