"""The overview: a whole slide at low resolution.

1. Choose the coarsest level that is not coarser than the wanted spacing, and the number of its pixels along each axis
   that are averaged into one pixel of the overview.
2. Read this level and average its pixels; see ``level_means``.

The picture of a slide is its overview, reduced to the size of a heatmap's panel. A small slide needs a finer picture;
if it comes from the level of the overview, both are made in one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.slides.level_means import BLOCK_PX, average_blocks, read_means
from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.units import Level

PANEL_PX = 720
"""Longer side of the slide's image in a heatmap, in pixels."""


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
    return _read(slide, *plan_overview(slide.levels, require_spacing(slide), wanted_um))[0]


def read_overview_and_picture(slide: Slide, wanted_um: float) -> tuple[Overview, Overview | None]:
    """Read a whole slide near a spacing, together with its picture if the picture comes from the same level.

    Args:
        slide: an open slide.
        wanted_um: micrometres per pixel of the overview; see :func:`read_overview`.

    Returns:
        The overview; and the picture, or None if :func:`picture_of` makes it.

    Raises:
        SlideRejected: the slide gives no spacing (code ``spacing_missing``).
        SlideFailed: the slide cannot be read.
    """
    level, group_px = plan_overview(slide.levels, require_spacing(slide), wanted_um)
    shape = (-(-level.height // group_px), -(-level.width // group_px))
    finer = _plan_finer_picture(slide, shape, level.downsample * group_px)
    if finer is None or finer[0] != level or math.lcm(group_px, finer[1]) > BLOCK_PX:
        return _read(slide, level, group_px)[0], None
    overview, picture = _read(slide, level, group_px, finer[1])
    return overview, picture


def picture_of(slide: Slide, overview: Overview) -> Overview:
    """Make the picture of a slide: the overview, reduced to the panel, or a finer read for a small slide.

    Args:
        slide: an open slide.
        overview: its overview.

    Raises:
        SlideFailed: the slide cannot be read.
    """
    longer_px = max(overview.pixels.shape)
    if longer_px >= PANEL_PX:
        return shrink_overview(overview, longer_px // PANEL_PX)
    finer = _plan_finer_picture(slide, overview.pixels.shape[:2], overview.downsample)
    return overview if finer is None else _read(slide, *finer)[0]


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


def _plan_finer_picture(slide: Slide, shape: tuple[int, ...], downsample: float) -> tuple[Level, int] | None:
    """Plan a finer picture than the overview (see :func:`plan_overview`); None if it is large enough or the finest.

    Args:
        slide: an open slide.
        shape: height and width of the overview.
        downsample: level-0 pixels per pixel of the overview.
    """
    if max(shape) >= PANEL_PX:
        return None
    spacing_um = require_spacing(slide)
    level, group_px = plan_overview(
        slide.levels, spacing_um, spacing_um * max(slide.size.width, slide.size.height) / PANEL_PX
    )
    return (level, group_px) if level.downsample * group_px < downsample else None


def _read(slide: Slide, level: Level, *groups_px: int) -> list[Overview]:
    """Read one overview for each number of averaged pixels from one level (step 2)."""
    return [
        Overview(
            slide_name=slide.path.name,
            slide_spacing_um=require_spacing(slide),
            pixels=pixels,
            column_edges=pixel_edges(slide.size.width, level.width, group_px),
            row_edges=pixel_edges(slide.size.height, level.height, group_px),
            downsample=level.downsample * group_px,
        )
        for group_px, pixels in zip(groups_px, read_means(slide, level, groups_px), strict=True)
    ]


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
