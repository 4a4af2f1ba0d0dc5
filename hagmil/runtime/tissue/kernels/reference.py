"""Mask kernels in NumPy, the reference for all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.tissue.kernels import arrays
from hagmil.runtime.tissue.kernels.runs import Runs, large_objects, small_holes

_BAND_PX = 65536
"""Pixels per band of rows, so that the dozen bands of an operation fit into the cache of the processor."""


@dataclass(frozen=True, slots=True)
class ReferenceKernels:
    """Mask kernels in NumPy; see ``MaskKernels`` for the methods."""

    name: str = "reference"

    def brightness(self, rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See ``MaskKernels.brightness``."""
        counts: NDArray[np.int64] = arrays.brightest(np, rgb, _BAND_PX)
        return counts

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See ``MaskKernels.saturation``."""
        result: NDArray[np.uint8] = arrays.saturation(np, rgb, _BAND_PX)
        return result

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """See ``MaskKernels.median``."""
        result: NDArray[np.uint8] = arrays.median(np, image, side_px, _BAND_PX)
        return result

    def median_above(self, image: NDArray[np.uint8], side_px: int, threshold: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.median_above``."""
        result: NDArray[np.bool_] = arrays.median_above(np, image, side_px, threshold, _BAND_PX)
        return result

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See ``MaskKernels.histogram``."""
        counts: NDArray[np.int64] = arrays.histogram(np, image, _BAND_PX)
        return counts

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.close``."""
        result: NDArray[np.bool_] = arrays.close(np, mask, side_px, _BAND_PX)
        return result

    def remove_small_objects(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.remove_small_objects``."""
        return large_objects(mask, min_area_px, join_runs)

    def fill_small_holes(self, mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
        """See ``MaskKernels.fill_small_holes``."""
        return mask | small_holes(mask, min_area_px, join_runs)


def join_runs(runs: Runs, reach: int) -> NDArray[np.int64]:
    """Join runs (step 3 of ``runs``): replace larger roots by smaller ones until all touching pairs agree.

    Args:
        runs: the runs of a mask.
        reach: ``SIDES`` or ``CORNERS``.

    Returns:
        int64 (runs,), for each run the smallest index of a run in its component.
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
