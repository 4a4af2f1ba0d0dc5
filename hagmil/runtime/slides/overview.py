"""The overview: a whole slide at low resolution.

1. Choose the coarsest level that is not coarser than the wanted spacing, and the number of its pixels along each axis
   that are averaged into one pixel of the overview.
2. Read this level block by block and average each block. Memory holds one block and the overview, whatever the size of
   the slide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.units import Level

PANEL_PX = 720
"""Longer side of the slide's image in a heatmap, in pixels."""

BLOCK_PX = 2048
"""Side of the blocks, in pixels of the level: 12 MB each, and a multiple of common tile sizes, so that few tiles are
decoded twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """A whole slide at low resolution.

    Args:
        slide_name: the slide's file name, for messages.
        slide_spacing_um: micrometres per level-0 pixel.
        pixels: uint8 (height, width, 3), RGB.
        column_edges: int64 (width + 1,), level-0 x of the left edge of each column, ascending from 0, and the slide's
            width.
        row_edges: int64 (height + 1,), level-0 y of the upper edge of each row, and the slide's height.
        downsample: level-0 pixels per pixel of the overview, the mean of both axes.
    """

    slide_name: str
    slide_spacing_um: float
    pixels: NDArray[np.uint8]
    column_edges: NDArray[np.int64]
    row_edges: NDArray[np.int64]
    downsample: float

    @property
    def spacing_um(self) -> float:
        """Micrometres per pixel of the overview."""
        return self.slide_spacing_um * self.downsample


def read_overview(slide: Slide, wanted_um: float) -> Overview:
    """Read a whole slide near a spacing.

    Args:
        slide: an open slide.
        wanted_um: micrometres per pixel of the overview. The overview has the nearest spacing that a whole number of
            pixels of a level gives.

    Raises:
        SlideRejected: the slide gives no spacing (code ``spacing_missing``).
        SlideFailed: the slide cannot be read.
    """
    slide_spacing_um = require_spacing(slide)
    level, group_px = plan_overview(slide.levels, slide_spacing_um, wanted_um)  # step 1
    return Overview(
        slide_name=slide.path.name,
        slide_spacing_um=slide_spacing_um,
        pixels=_read_averaged(slide, level, group_px),  # step 2
        column_edges=pixel_edges(slide.size.width, level.width, group_px),
        row_edges=pixel_edges(slide.size.height, level.height, group_px),
        downsample=level.downsample * group_px,
    )


def plan_overview(levels: tuple[Level, ...], slide_spacing_um: float, wanted_um: float) -> tuple[Level, int]:
    """Choose the level to read, and how many of its pixels along each axis make one pixel of the overview (step 1).

    Args:
        levels: levels of the slide, finest first.
        slide_spacing_um: micrometres per level-0 pixel.
        wanted_um: micrometres per pixel of the overview.

    Returns:
        The coarsest level that is at most 2 % coarser than wanted (level 0 if all are coarser), and the number of its
        pixels, at least 1.
    """
    fine_enough = [level for level in levels if slide_spacing_um * level.downsample <= wanted_um * 1.02]
    level = max(fine_enough, key=lambda level: level.downsample, default=levels[0])
    return level, max(1, round(wanted_um / (slide_spacing_um * level.downsample)))


def shrink_overview(overview: Overview, group_px: int) -> Overview:
    """Average squares of an overview's pixels into one pixel each.

    Args:
        overview: the overview.
        group_px: side of the squares, in pixels of the overview.
    """
    return replace(
        overview,
        pixels=average_blocks(overview.pixels, group_px),
        column_edges=np.append(overview.column_edges[:-1:group_px], overview.column_edges[-1]),
        row_edges=np.append(overview.row_edges[:-1:group_px], overview.row_edges[-1]),
        downsample=overview.downsample * group_px,
    )


def average_blocks(rgb: NDArray[np.uint8], group_px: int) -> NDArray[np.uint8]:
    """Average each square of pixels into one pixel, rounding half up.

    Squares that reach beyond the right or lower edge are averaged over their part inside.

    Args:
        rgb: uint8 (height, width, 3).
        group_px: side of the squares in pixels.

    Returns:
        uint8 (ceil(height / group_px), ceil(width / group_px), 3).
    """
    if group_px == 1:
        return rgb
    height, width, _ = rgb.shape
    rows, columns = np.arange(0, height, group_px), np.arange(0, width, group_px)
    tall = np.zeros((len(rows), width, 3), dtype=np.uint32)
    for offset in range(min(group_px, height)):
        line = rgb[offset::group_px]
        tall[: line.shape[0]] += line
    total = np.zeros((len(rows), len(columns), 3), dtype=np.uint32)
    for offset in range(min(group_px, width)):
        part = tall[:, offset::group_px]
        total[:, : part.shape[1]] += part
    count = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))[..., np.newaxis]
    mean: NDArray[np.uint8] = ((total + count // 2) // count).astype(np.uint8)
    return mean


def _read_averaged(slide: Slide, level: Level, group_px: int) -> NDArray[np.uint8]:
    """Read a level in blocks and average each (step 2): uint8 (height, width, 3)."""
    pixels = np.empty((-(-level.height // group_px), -(-level.width // group_px), 3), np.uint8)
    step = max(1, BLOCK_PX // group_px) * group_px
    for top in range(0, level.height, step):
        for left in range(0, level.width, step):
            width, height = min(step, level.width - left), min(step, level.height - top)
            block = average_blocks(slide.read_region(level.index, left, top, width, height), group_px)
            y, x = top // group_px, left // group_px
            pixels[y : y + block.shape[0], x : x + block.shape[1]] = block
    return pixels


def pixel_edges(level0_px: int, level_px: int, group_px: int) -> NDArray[np.int64]:
    """Return the level-0 coordinates of the overview's pixel edges along one axis.

    Args:
        level0_px: extent of the slide at level 0.
        level_px: extent of the level that was read.
        group_px: pixels of this level per pixel of the overview; the last pixel may cover fewer.

    Returns:
        int64 (n + 1,), ascending from 0 to ``level0_px``.
    """
    starts = np.append(np.arange(0, level_px, group_px), level_px)
    return np.rint(starts * (level0_px / level_px)).astype(np.int64)
