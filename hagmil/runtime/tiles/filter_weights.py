"""Weights of Pillow's antialiasing linear filter, for the compiled tile kernel.

1. An axis of a picture is cut from ``begin`` to ``end`` and resampled to ``count`` pixels, each ``scale`` wide.
2. A pixel of the result is made of those whose middle lies within ``scale`` of its own, or within 1 where it is
   enlarged. Their weights fall linearly to 0 there, and are divided by their sum.
3. Weights are whole numbers of 2^-22.

All of it is Pillow's arithmetic, its rounding of ``begin`` and ``end`` to single precision included, so that pixels of
squares are the same to the last bit; a contract test holds them side by side. (Whether rows or columns come first shows
in the last bit. It is rows here, as in Pillow up to 12; from 13 on Pillow chooses by the shape, for squares rows.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WEIGHT_BITS = 22


@dataclass(frozen=True, slots=True, eq=False)
class LinearFilter:
    """What the pixels of one axis are made of.

    Args:
        first: int32 (count,), the first of the pixels that make each; it does not fall.
        weights: int32 (count, taps), of 2^22; an even number of taps.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.int32]


@functools.lru_cache(maxsize=256)
def linear_filter(size: int, begin: float, end: float, count: int) -> LinearFilter | None:
    """The filter of one axis.

    Args:
        size: pixels that there are.
        begin: where the part that is resampled begins, in pixels.
        end: where it ends.
        count: pixels of the result.

    Returns:
        The filter; None where there are fewer pixels than its taps.
    """
    low, high = np.float32(begin), np.float32(end)
    scale = float(high - low) / count  # step 1
    reach = max(scale, 1.0)
    middles = float(low) + (np.arange(count) + 0.5) * scale
    first = np.maximum((middles - reach + 0.5).astype(np.int64), 0)  # step 2
    after = np.minimum((middles + reach + 0.5).astype(np.int64), size)
    taps = int((after - first).max())
    taps += taps % 2
    if taps > size:
        return None
    start = np.minimum(first, size - taps)
    pixels = start[:, np.newaxis] + np.arange(taps)  # (count, taps)
    weights = np.maximum(1 - np.abs((pixels - middles[:, np.newaxis] + 0.5) * (1 / reach)), 0)
    weights *= (pixels >= first[:, np.newaxis]) & (pixels < after[:, np.newaxis])
    total = np.zeros(count)
    for tap in range(taps):  # one after the other, as rounding has it
        total += weights[:, tap]
    whole = (weights / total[:, np.newaxis] * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)  # step 3
    found = LinearFilter(start.astype(np.int32), whole)
    for array in (found.first, found.weights):
        array.setflags(write=False)  # it is everybody's
    return found
