"""When the adaptive cascade stops: arithmetic on the logits of the last stage, shared by calibration and inference.

1. The cascade runs with growing numbers K of kept patches. Each K gives a :class:`Reading`: the logits of the whole bag
   of the last stage, and those of its rows with the highest attention as a bag of their own.
2. The margin of a vector of logits is the highest minus the second highest, before the temperature.
3. Two successive readings have four vectors of logits. If all predict the same class, their margin is the smallest of
   the four margins; otherwise it is 0.
4. The verdict is sure if the margin of two successive readings exceeds the threshold, and the cascade stops there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle.tested import TOP_ROWS

KEEPS = (4, 8, 16, 32, 64, 128)
"""Default numbers of kept patches, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the last stage gives with one number of kept patches (step 1).

    Args:
        keep: patches kept at every stage but the last.
        patches_read: patches of all stages that were read for this and all smaller numbers, each counted once.
        logits: (classes,), of the whole bag, before the temperature.
        top_logits: (classes,), of the rows with the highest attention; see :func:`top_rows`.
    """

    keep: int
    patches_read: int
    logits: NDArray[np.floating]
    top_logits: NDArray[np.floating]


class AdaptiveReadings(NamedTuple):
    """The readings of a slide until the cascade stopped.

    Args:
        readings: in the order in which they ran; the last gives the verdict.
        sure: whether the last two readings agree with a margin above the threshold.
    """

    readings: tuple[Reading, ...]
    sure: bool


def top_rows(attention: NDArray[np.floating], count: int = TOP_ROWS) -> NDArray[np.int64]:
    """Rows of the second bag: those with the highest attention, in the order of the first bag.

    Args:
        attention: (patches,), of the last stage.
        count: number of rows; all rows if there are fewer, so that both bags are equal.

    Returns:
        int64 (min(count, patches),), ascending; of equal scores, the first rows are taken.
    """
    return np.sort(np.argsort(-attention, kind="stable")[:count]).astype(np.int64)


def margin(logits: NDArray[np.floating]) -> float:
    """The highest logit minus the second highest (step 2).

    Args:
        logits: (classes,), at least two classes, before the temperature.

    Returns:
        0 or more.
    """
    second, first = np.sort(np.asarray(logits, np.float64))[-2:]
    return float(first - second)


def pair_margin(before: Reading, after: Reading) -> float:
    """The margin of two successive readings (step 3).

    Returns:
        The smallest of the four margins; 0, which no threshold calls sure, if the predictions differ.
    """
    four = (before.logits, before.top_logits, after.logits, after.top_logits)
    if len({int(np.argmax(logits)) for logits in four}) > 1:
        return 0.0
    return min(margin(logits) for logits in four)


def is_sure(before: Reading, after: Reading, threshold: float) -> bool:
    """Whether the margin of two successive readings exceeds the threshold, which is 0 or more (step 4)."""
    return pair_margin(before, after) > threshold


def read_until_sure(readings: Iterable[Reading], threshold: float) -> AdaptiveReadings:
    """Take readings until two successive readings are sure, or until there are no more.

    Args:
        readings: in the order of the numbers of kept patches; a reading is requested only when it is needed.
        threshold: smallest margin of a sure verdict, 0 or more.

    Returns:
        The readings taken. One reading alone is never sure.
    """
    taken: list[Reading] = []
    for reading in readings:
        taken.append(reading)
        if len(taken) > 1 and is_sure(taken[-2], taken[-1], threshold):
            return AdaptiveReadings(tuple(taken), sure=True)
    return AdaptiveReadings(tuple(taken), sure=False)
