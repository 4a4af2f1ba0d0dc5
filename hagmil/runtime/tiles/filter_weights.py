"""Weights of Pillow's antialiasing linear filter, for the compiled tile kernel.

1. One axis of an image is cut from ``begin`` to ``end`` and resampled to ``count`` pixels, each ``scale`` wide.
2. A pixel of the result is a weighted mean of the pixels whose centres lie within ``scale`` of its own centre (within 1
   if the image is enlarged). The weights decrease linearly to 0 at that distance and are divided by their sum.
3. The weights are integer multiples of 2^-22.

This is Pillow's arithmetic, including its rounding of ``begin`` and ``end`` to single precision, so that the pixels of
squares are identical; a contract test compares them. (The last bit depends on whether rows or columns are resampled
first. Rows are first here and in Pillow up to version 12. Pillow 13 decides by the shape; rows are first for squares.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WEIGHT_BITS = 22


@dataclass(frozen=True, slots=True, eq=False)
class LinearFilter:
    """The filter of one axis.

    Args:
        first: int32 (count,), index of the first input pixel of each output pixel; never decreases.
        weights: int32 (count, taps), multiples of 2^-22; the number of taps is even.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.int32]


@functools.lru_cache(maxsize=256)
def linear_filter(size: int, begin: float, end: float, count: int) -> LinearFilter | None:
    """Compute the filter of one axis.

    Args:
        size: number of input pixels.
        begin: start of the part to resample, in pixels.
        end: end of that part.
        count: number of output pixels.

    Returns:
        The filter; None if it has more taps than there are input pixels.
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
    for tap in range(taps):  # in this order, for the same rounding as Pillow
        total += weights[:, tap]
    whole = (weights / total[:, np.newaxis] * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)  # step 3
    found = LinearFilter(start.astype(np.int32), whole)
    for array in (found.first, found.weights):
        array.setflags(write=False)  # shared by all callers, through the cache
    return found
