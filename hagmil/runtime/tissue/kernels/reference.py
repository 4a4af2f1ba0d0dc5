"""The plain NumPy set of mask kernels: what the others are measured by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.tissue.kernels import arrays
from hagmil.runtime.tissue.kernels.runs import Runs, large_objects, small_holes

_BAND_PX = 65536
"""Pixels of a band of rows: the dozen bands that a step holds stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class ReferenceKernels:
    """Mask kernels in plain NumPy; see ``MaskKernels`` for what each does."""

    name: str = "reference"

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value is a pixel's brightest channel."""
        counts: NDArray[np.int64] = arrays.brightest(np, rgb, _BAND_PX)
        return counts

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saturation of HSV, 0 to 255; 0 where there is no light."""
        result: NDArray[np.uint8] = arrays.saturation(np, rgb, _BAND_PX)
        return result

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """Median over a square around each pixel."""
        result: NDArray[np.uint8] = arrays.median(np, image, side_px, _BAND_PX)
        return result

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """Where the median over a square is above a threshold."""
        result: NDArray[np.bool_] = arrays.median_above(np, image, side_px, threshold, _BAND_PX)
        return result

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value occurs."""
        counts: NDArray[np.int64] = arrays.histogram(np, image, _BAND_PX)
        return counts

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """Morphological closing by a square."""
        result: NDArray[np.bool_] = arrays.close(np, mask, side_px, _BAND_PX)
        return result

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Drop True components of fewer pixels, 8-connected."""
        return large_objects(mask, min_area_px, join_runs)

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """Fill enclosed False components of fewer pixels, 4-connected."""
        return mask | small_holes(mask, min_area_px, join_runs)


def join_runs(runs: Runs, reach: int) -> NDArray[np.int64]:
    """Step 3 of ``runs``, in NumPy: hook larger roots under smaller ones until all pairs agree.

    Args:
        runs: of one mask.
        reach: ``SIDES`` or ``CORNERS``.

    Returns:
        int64 (runs,), for each run the least index of a run of its component.
    """
    first = np.searchsorted(runs.stop, runs.start - runs.stride - reach, side="right")
    last = np.searchsorted(runs.start, runs.stop - runs.stride + reach, side="left")
    touching = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(runs.start.size), touching)
    upper = first[lower] + np.arange(lower.size) - (np.cumsum(touching) - touching)[lower]
    root = np.arange(runs.start.size)
    while not np.array_equal(root[lower], root[upper]):
        one, other = root[lower], root[upper]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(root, root[root]):
            root = root[root]
    return root
