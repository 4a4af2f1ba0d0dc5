"""A whole slide at low resolution, read in blocks: memory holds one block and the overview, whatever the file.

1. Choose the level nearest to the wanted spacing that is not coarser, and how many of its pixels, along each axis,
   make one pixel of the overview.
2. Read that level in blocks and average each down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.units import Level

PANEL_PX = 720

BLOCK_PX = 2048
"""Side of the blocks that a level is read in: 12 MB each; a multiple of common tiles, so few are decoded twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """The whole slide, small.

    Args:
        slide_name: the slide's file name, for messages.
        slide_spacing_um: micrometres per level-0 pixel.
        pixels: uint8 (height, width, 3), RGB.
        column_edges: int64 (width + 1,), the level-0 x at which each column begins, rising from 0; last comes the
            slide's width.
        row_edges: int64 (height + 1,), likewise y and the slide's height.
        downsample: level-0 pixels per pixel, the mean of both axes.
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
        slide: an open slide that gives a spacing.
        wanted_um: um per pixel of the overview, to be met as nearly as whole numbers allow.

    Raises:
        SlideRejected: the slide has no spacing (``spacing_missing``).
        SlideFailed: it cannot be read.
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
    """Step 1: the level to read, and how many of its pixels make one of the overview along each axis.

    Args:
        levels: the slide's, finest first.
        slide_spacing_um: um per level-0 pixel.
        wanted_um: um per pixel of the overview, to be met as nearly as whole numbers allow.

    Returns:
        The coarsest level that is at most 2 % coarser than wanted (level 0 where all are coarser), and the
        number of its pixels, 1 or more.
    """
    fine_enough = [level for level in levels if slide_spacing_um * level.downsample <= wanted_um * 1.02]
    level = max(fine_enough, key=lambda level: level.downsample, default=levels[0])
    return level, max(1, round(wanted_um / (slide_spacing_um * level.downsample)))


def shrink_overview(overview: Overview, group_px: int) -> Overview:
    """An overview whose pixels are means of squares of another's.

    Args:
        overview: the larger one.
        group_px: side of the squares, in its pixels.
    """
    return replace(
        overview,
        pixels=average_blocks(overview.pixels, group_px),
        column_edges=np.append(overview.column_edges[:-1:group_px], overview.column_edges[-1]),
        row_edges=np.append(overview.row_edges[:-1:group_px], overview.row_edges[-1]),
        downsample=overview.downsample * group_px,
    )


def average_blocks(rgb: NDArray[np.uint8], group_px: int) -> NDArray[np.uint8]:
    """Average each square of pixels into one, rounding half up; squares at the edges average what they have.

    Args:
        rgb: uint8 (height, width, 3).
        group_px: the squares' side.

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
    """Step 2: uint8 (height, width, 3) of the overview."""
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
    """Where the mask's pixels begin in level 0, along one axis.

    Args:
        level0_px: the slide's extent at level 0.
        level_px: its extent at the level that was read.
        group_px: pixels of that level that make one of the mask; the last one has what is left.

    Returns:
        int64 (n + 1,), rising from 0 to ``level0_px``.
    """
    starts = np.append(np.arange(0, level_px, group_px), level_px)
    return np.rint(starts * (level0_px / level_px)).astype(np.int64)
