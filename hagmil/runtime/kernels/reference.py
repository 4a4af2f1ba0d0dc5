"""The plain NumPy set of mask kernels: what the others are measured by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.kernels.protocol import DARKEST_LIT
from hagmil.runtime.kernels.runs import Runs, large_objects, small_holes

_BAND_PX = 65536
"""The median goes over bands of rows that stay in the processor's cache: three times as fast as the image at
once."""


@dataclass(frozen=True, slots=True)
class ReferenceKernels:
    """Mask kernels in plain NumPy; see ``MaskKernels`` for what each does."""

    name: str = "reference"

    def saturation(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saturation of HSV, 0 to 255; 0 where there is no light."""
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        brightest = np.maximum(np.maximum(red, green), blue).astype(np.int32)
        spread = brightest - np.minimum(np.minimum(red, green), blue)
        rounded = (510 * spread + brightest) // np.maximum(2 * brightest, 1)
        return np.where(brightest < DARKEST_LIT, 0, rounded).astype(np.uint8)

    def median(self, image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
        """Median over a square around each pixel, found bit by bit from the highest.

        The median of an odd number of values is at least v exactly if more than half of them, rounded down,
        are.
        """
        if side_px == 1 or image.size == 0:
            return image.copy()
        height, width = image.shape
        padded = np.pad(image, side_px // 2, mode="edge")
        result = np.zeros_like(image)
        band = max(1, _BAND_PX // width)
        for top in range(0, height, band):
            part = result[top : top + band]
            for bit in (128, 64, 32, 16, 8, 4, 2, 1):
                candidate = part | bit
                at_least = np.zeros(part.shape, dtype=np.int32)
                for down, right in np.ndindex(side_px, side_px):
                    window = padded[top + down : top + down + len(part), right : right + width]
                    at_least += window >= candidate
                part[at_least > side_px * side_px // 2] |= bit
        return result

    def histogram(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each value occurs."""
        counts = np.zeros(256, dtype=np.int64)
        for row in image:
            counts += np.bincount(row, minlength=256)
        return counts

    def close(self, mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
        """Morphological closing by a square."""
        if side_px == 1 or mask.size == 0:
            return mask.copy()
        dilated = _over_square(np.pad(mask, side_px - 1), side_px, np.logical_or)
        return _over_square(dilated, side_px, np.logical_and)

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


def _over_square(mask: NDArray[np.bool_], side_px: int, combine: np.ufunc) -> NDArray[np.bool_]:
    """Combine the square below and right of each pixel; the result is side - 1 smaller on both axes."""
    height, width = mask.shape[0] - side_px + 1, mask.shape[1] - side_px + 1
    rows = mask[:height].copy()
    for offset in range(1, side_px):
        combine(rows, mask[offset : offset + height], out=rows)
    result = rows[:, :width].copy()
    for offset in range(1, side_px):
        combine(result, rows[:, offset : offset + width], out=result)
    return result
