"""Read patches from a slide, resampled from the nearest finer level where necessary.

1. If the spacing of the level equals the stage's, the pixels are used as they are.
2. If a pixel of the patch covers a whole number of the level's pixels along each axis, it is their mean.
3. Otherwise the region is resampled by an antialiasing linear filter at its exact position, including fractions of a
   pixel. A margin is read as well, so that adjacent patches have no seam.
4. Large regions are first reduced by whole factors, band by band, so that memory is bounded even for a file with a
   single, huge level.
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
_SHRINK_FIRST_ABOVE = 4.0  # level pixels per patch pixel
_SHRINK_LEAVES = 2.0
_WHOLE_WITHIN_PX = 0.5  # difference in the side of a patch, in pixels of the level


class RegionReader(Protocol):
    """A source of pixels that patches are read from, such as a slide."""

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle of a level, white outside the image: uint8 (height, width, 3)."""


class PatchReader(Protocol):
    """Reads patches into an array. Each thread needs a reader of its own."""

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches at ``coords`` (int64 (n, 2)) into ``out`` (uint8 (n, patch_px, patch_px, 3))."""

    def close(self) -> None:
        """Release the reader's resources, but not its slide."""


class SlidePatchReader:
    """Reads each patch on its own; tiles shared by neighbours come from the slide's tile cache.

    Args:
        slide: an open slide that no other reader uses.
        geometry: geometry of the stage on this slide.
    """

    def __init__(self, slide: Slide, geometry: StageGeometry) -> None:
        self._slide = slide
        self._geometry = geometry

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches into an array.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y); may lie outside the slide.
            out: uint8 (n, patch_px, patch_px, 3), RGB; overwritten.

        Raises:
            SlideFailed: the pixels cannot be decoded (code ``unreadable``).
        """
        read_into(self._slide, self._geometry, coords, out)

    def close(self) -> None:
        """Do nothing: the reader has no resources of its own."""


def read_into(slide: Slide, geometry: StageGeometry, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Read patches into an array, in the order of ``coords``.

    Args:
        slide: an open slide.
        geometry: geometry of a stage on this slide.
        coords: int64 (n, 2), level-0 top-left corners (x, y); may lie outside the slide.
        out: uint8 (n, patch_px, patch_px, 3), RGB; overwritten.

    Raises:
        ValueError: ``out`` does not have the shape of the patches.
        SlideFailed: the pixels cannot be decoded (code ``unreadable``).
    """
    wanted = (len(coords), geometry.patch_px, geometry.patch_px, 3)
    if out.shape != wanted:
        raise ValueError(f"out has the shape {out.shape}, but the patches have {wanted}")
    for row, (x, y) in enumerate(coords.tolist()):
        out[row] = read_patch(slide, geometry, x, y)


def read_patch(slide: RegionReader, geometry: StageGeometry, x: int, y: int) -> NDArray[np.uint8]:
    """Read one patch.

    Args:
        slide: an open slide.
        geometry: geometry of a stage on this slide.
        x: left edge in level-0 pixels; may lie outside the slide.
        y: upper edge in level-0 pixels; may lie outside the slide.

    Returns:
        uint8 (patch_px, patch_px, 3), RGB; white outside the slide.

    Raises:
        SlideFailed: the pixels cannot be decoded (code ``unreadable``).
    """
    footprint = footprint_of(geometry)
    ((corner_x, corner_y),) = footprint.corners(np.array([[x, y]], np.int64)).tolist()
    shrink = footprint.shrink
    pixels = _read_reduced(slide, geometry.level, corner_x, corner_y, footprint.side_px // shrink, shrink)
    if not footprint.resized:
        return pixels  # steps 1 and 2
    left, upper = x / geometry.downsample, y / geometry.downsample  # in pixels of the level
    box_left, box_upper = (left - corner_x) / shrink, (upper - corner_y) / shrink
    box_side = geometry.region_px / shrink
    patch = np.empty((geometry.patch_px, geometry.patch_px, 3), np.uint8)
    resample_pixels(pixels, (box_left, box_upper, box_left + box_side, box_upper + box_side), patch)  # step 3
    return patch


@dataclass(frozen=True, slots=True)
class Footprint:
    """The pixels of a level that are read for a patch.

    Args:
        downsample: level-0 pixels per pixel of the level.
        side_px: side of the square that is read, in pixels of the level.
        shrink: pixels of the level along each axis that are averaged into one pixel.
        margin_px: width of the margin around the patch, in pixels of the level.
        resized: whether the averaged pixels are resampled to the size of the patch.
    """

    downsample: float
    side_px: int
    shrink: int
    margin_px: int
    resized: bool

    def corners(self, coords: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the top-left corners of the squares in pixels of the level.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y) of the patches.

        Returns:
            int64 (n, 2), (x, y); multiples of ``shrink`` if the patches are resampled, so that all patches average the
            same groups of pixels.
        """
        edges = coords / self.downsample
        if not self.resized:
            return np.floor(edges + 0.5).astype(np.int64)
        return (np.floor(edges).astype(np.int64) - self.margin_px) // self.shrink * self.shrink


def footprint_of(geometry: StageGeometry) -> Footprint:
    """Return the footprint of a stage's patches, which is the same for all of them."""
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


def _read_reduced(slide: RegionReader, level: int, x: int, y: int, side: int, shrink: int) -> NDArray[np.uint8]:
    """Average ``shrink`` x ``shrink`` pixels into each pixel of a square: uint8 (side, side, 3)."""
    if shrink == 1:
        return slide.read_region(level, x, y, side, side)
    reduced = np.empty((side, side, 3), np.uint8)
    width = side * shrink
    band = max(1, _BAND_PIXELS // (width * shrink))  # rows of the result per band
    for row in range(0, side, band):
        rows = min(band, side - row)
        pixels = slide.read_region(level, x, y + row * shrink, width, rows * shrink)
        reduce_pixels(pixels, shrink, reduced[row : row + rows])
    return reduced
