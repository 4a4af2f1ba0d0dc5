"""Patches from a slide: whole pixels where the level fits, else resampled from the nearest finer level.

1. Where the geometry says that the level's pixels are the patch's, they are taken as they are.
2. Where a whole number of the level's pixels makes one of the patch's, their mean is taken.
3. Else the region is resampled by an antialiasing linear filter, from where exactly it lies, fractions of a
   pixel included; a margin is read with it, so that patches side by side meet without a seam.
4. A region of many pixels is reduced by whole numbers first, band by band: memory is bounded on a file that
   has one huge level only.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.geometry import StageGeometry
from hagmil.runtime.slide import Slide

_BAND_PIXELS = 4 << 20
_SHRINK_FIRST_ABOVE = 4.0
_SHRINK_LEAVES = 2.0
_WHOLE_WITHIN_PX = 0.5


class PatchReader(Protocol):
    """Something that fills an array with patches; not for two threads at once."""

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches at ``coords`` (int64 (n, 2)) into ``out`` (uint8 (n, patch_px, patch_px, 3))."""

    def close(self) -> None:
        """Let go of what the reader holds; not of the slide it was given."""


class SlidePatchReader:
    """Reads each patch by itself; the slide's own tile cache serves neighbours.

    Args:
        slide: an open slide, for this reader alone.
        geometry: the stage's geometry on it.
    """

    def __init__(self, slide: Slide, geometry: StageGeometry) -> None:
        self._slide = slide
        self._geometry = geometry

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches into an array.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y); they may lie outside of the slide.
            out: uint8 (n, patch_px, patch_px, 3), RGB; overwritten.

        Raises:
            SlideFailed: pixels cannot be decoded (code ``unreadable``).
        """
        read_into(self._slide, self._geometry, coords, out)

    def close(self) -> None:
        """Nothing is held beside the slide."""


def read_into(slide: Slide, geometry: StageGeometry, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Read patches into an array, in the order of ``coords``.

    Args:
        slide: an open slide.
        geometry: a stage's geometry on it.
        coords: int64 (n, 2), level-0 top-left corners (x, y); they may lie outside of the slide.
        out: uint8 (n, patch_px, patch_px, 3), RGB; overwritten.

    Raises:
        ValueError: ``out`` has not the shape of the patches.
        SlideFailed: pixels cannot be decoded (code ``unreadable``).
    """
    wanted = (len(coords), geometry.patch_px, geometry.patch_px, 3)
    if out.shape != wanted:
        raise ValueError(f"out has the shape {out.shape}, the patches have {wanted}")
    for row, (x, y) in enumerate(coords.tolist()):
        out[row] = read_patch(slide, geometry, x, y)


def read_patch(slide: Slide, geometry: StageGeometry, x: int, y: int) -> NDArray[np.uint8]:
    """Read one patch.

    Args:
        slide: an open slide.
        geometry: a stage's geometry on it.
        x: left edge in level-0 pixels; it may lie outside of the slide.
        y: upper edge in level-0 pixels.

    Returns:
        uint8 (patch_px, patch_px, 3), RGB; white where the slide has no pixels.

    Raises:
        SlideFailed: pixels cannot be decoded (code ``unreadable``).
    """
    left, upper = x / geometry.downsample, y / geometry.downsample  # in the level's pixels
    if not geometry.resample:
        return _read_reduced(slide, geometry.level, _nearest(left), _nearest(upper), geometry.patch_px, 1)  # step 1
    ratio = geometry.region_px / geometry.patch_px
    whole = round(ratio)
    if abs(geometry.region_px - whole * geometry.patch_px) < _WHOLE_WITHIN_PX:
        return _read_reduced(slide, geometry.level, _nearest(left), _nearest(upper), geometry.patch_px, whole)  # step 2
    return _read_resampled(slide, geometry, left, upper, ratio)  # step 3


def _read_resampled(
    slide: Slide, geometry: StageGeometry, left: float, upper: float, ratio: float
) -> NDArray[np.uint8]:
    shrink = math.floor(ratio / _SHRINK_LEAVES) if ratio > _SHRINK_FIRST_ABOVE else 1  # step 4
    margin = (math.ceil(ratio / shrink) + 1) * shrink
    x, y = ((math.floor(edge) - margin) // shrink * shrink for edge in (left, upper))  # one lattice for all
    side = math.ceil((geometry.region_px + 2 * margin) / shrink) + 2
    pixels = _read_reduced(slide, geometry.level, x, y, side, shrink)
    box_left, box_upper, box_side = (left - x) / shrink, (upper - y) / shrink, geometry.region_px / shrink
    resized = Image.fromarray(pixels).resize(
        (geometry.patch_px, geometry.patch_px),
        Image.Resampling.BILINEAR,
        box=(box_left, box_upper, box_left + box_side, box_upper + box_side),
    )
    return np.asarray(resized)


def _read_reduced(slide: Slide, level: int, x: int, y: int, side: int, shrink: int) -> NDArray[np.uint8]:
    """Means of ``shrink`` x ``shrink`` pixels, ``side`` of them each way: uint8 (side, side, 3)."""
    if shrink == 1:
        return slide.read_region(level, x, y, side, side)
    reduced = np.empty((side, side, 3), np.uint8)
    width = side * shrink
    band = max(1, _BAND_PIXELS // (width * shrink))  # rows of the result read at once
    for row in range(0, side, band):
        rows = min(band, side - row)
        pixels = slide.read_region(level, x, y + row * shrink, width, rows * shrink)
        reduced[row : row + rows] = np.asarray(Image.fromarray(pixels).reduce(shrink))
    return reduced


def _nearest(position: float) -> int:
    return math.floor(position + 0.5)
