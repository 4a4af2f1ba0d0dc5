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
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tiles.kernel import reduce_pixels, resample_pixels

_BAND_PIXELS = 4 << 20
_SHRINK_FIRST_ABOVE = 4.0
_SHRINK_LEAVES = 2.0
_WHOLE_WITHIN_PX = 0.5


class Regions(Protocol):
    """What patches are cut from: a slide, or whatever else gives its pixels."""

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle of one level, white where it has no pixels: uint8 (height, width, 3)."""


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


def read_patch(slide: Regions, geometry: StageGeometry, x: int, y: int) -> NDArray[np.uint8]:
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
    seen = footprint(geometry)
    ((corner_x, corner_y),) = seen.corners(np.array([[x, y]], np.int64)).tolist()
    pixels = _read_reduced(slide, geometry.level, corner_x, corner_y, seen.side_px // seen.shrink, seen.shrink)
    if not seen.resized:
        return pixels  # steps 1 and 2
    left, upper = x / geometry.downsample, y / geometry.downsample  # in the level's pixels
    box_left, box_upper = (left - corner_x) / seen.shrink, (upper - corner_y) / seen.shrink
    box_side = geometry.region_px / seen.shrink
    patch = np.empty((geometry.patch_px, geometry.patch_px, 3), np.uint8)
    resample_pixels(pixels, (box_left, box_upper, box_left + box_side, box_upper + box_side), patch)  # step 3
    return patch


@dataclass(frozen=True, slots=True)
class Footprint:
    """Which pixels of its level a stage reads for a patch.

    Args:
        downsample: level-0 pixels per pixel of the level.
        side_px: side of the square that is read, in the level's pixels.
        shrink: pixels of the level, each way, that are averaged into one.
        margin_px: how far the square reaches beyond the patch.
        resized: whether what is left is resampled to the patch's size.
    """

    downsample: float
    side_px: int
    shrink: int
    margin_px: int
    resized: bool

    def corners(self, coords: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the squares begin, in the level's pixels.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y) of the patches.

        Returns:
            int64 (n, 2), (x, y); whole numbers of ``shrink`` where patches are resampled: one lattice for all.
        """
        edges = coords / self.downsample
        if not self.resized:
            return np.floor(edges + 0.5).astype(np.int64)
        return (np.floor(edges).astype(np.int64) - self.margin_px) // self.shrink * self.shrink


def footprint(geometry: StageGeometry) -> Footprint:
    """Which pixels of its level a stage reads for a patch: the same for every patch, but for where it lies."""
    if not geometry.resample:
        return Footprint(geometry.downsample, geometry.patch_px, 1, 0, resized=False)  # step 1
    ratio = geometry.region_px / geometry.patch_px
    whole = round(ratio)
    if abs(geometry.region_px - whole * geometry.patch_px) < _WHOLE_WITHIN_PX:
        return Footprint(geometry.downsample, geometry.patch_px * whole, whole, 0, resized=False)  # step 2
    shrink = math.floor(ratio / _SHRINK_LEAVES) if ratio > _SHRINK_FIRST_ABOVE else 1  # step 4
    margin = (math.ceil(ratio / shrink) + 1) * shrink
    side = (math.ceil((geometry.region_px + 2 * margin) / shrink) + 2) * shrink
    return Footprint(geometry.downsample, side, shrink, margin, resized=True)  # step 3


def _read_reduced(slide: Regions, level: int, x: int, y: int, side: int, shrink: int) -> NDArray[np.uint8]:
    """Means of ``shrink`` x ``shrink`` pixels, ``side`` of them each way: uint8 (side, side, 3)."""
    if shrink == 1:
        return slide.read_region(level, x, y, side, side)
    reduced = np.empty((side, side, 3), np.uint8)
    width = side * shrink
    band = max(1, _BAND_PIXELS // (width * shrink))  # rows of the result read at once
    for row in range(0, side, band):
        rows = min(band, side - row)
        pixels = slide.read_region(level, x, y + row * shrink, width, rows * shrink)
        reduce_pixels(pixels, shrink, reduced[row : row + rows])
    return reduced
