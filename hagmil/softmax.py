"""Softmax of logits with a temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating], temperature: float | None = None) -> NDArray[np.float64]:
    """Convert logits to probabilities in float64.

    Args:
        logits: (..., classes).
        temperature: divides the logits; None means 1.

    Returns:
        float64 (..., classes); sums to 1 over the last axis.
    """
    values = np.asarray(logits, np.float64)
    exponentials = np.exp((values - values.max(axis=-1, keepdims=True)) / (temperature or 1.0))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float64)
