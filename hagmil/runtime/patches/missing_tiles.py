"""Find patches of tissue that would get white pixels because tiles of the file have no bytes.

1. A missing tile is unscanned glass if the overview shows no tissue there. The overview is usually read from another
   level than the patches. Its pixels at the border of the tile are not counted: they may contain neighbouring tissue.
   A missing tile that the mask fills as a small hole in tissue counts as tissue too.
   In Aperio files, OpenSlide replaces what coarser levels show there, and scanners leave no gaps. Every missing tile
   that touches tissue therefore counts as tissue.
2. A patch of the coarsest stage is affected if it overlaps a missing tile of tissue, at the level of any stage. All
   patches of finer stages lie in patches of the coarsest stage.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideFailed
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.slides.overview import Overview
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.tiff_pyramid import APERIO
from hagmil.runtime.tissue.kernels import MaskKernels, kernels_for
from hagmil.runtime.tissue.mask import TissueMask

_log = logging.getLogger(__name__)

_LEAST_TISSUE = 0.05
"""Share of coloured pixels in the overview from which a missing tile counts as tissue."""
_LEAST_FILLED = 0.5
"""Share of the mask from which a missing tile without colour counts as a filled hole in tissue."""


def without_missing(
    slide: Slide,
    plan: Sequence[StageGeometry],
    overview: Overview,
    mask: TissueMask,
    coords: NDArray[np.int64],
    *,
    max_missing: int = 0,
    kernels: MaskKernels | None = None,
) -> NDArray[np.int64]:
    """Leave out the patches of the coarsest stage that overlap missing tiles of tissue.

    Args:
        slide: an open slide.
        plan: geometry of every stage, coarse to fine.
        overview: the slide at the spacing of the mask.
        mask: the tissue mask.
        coords: int64 (n, 2), level-0 top-left corners (x, y) of the coarsest stage's patches.
        max_missing: number of patches that may be left out, with a warning.
        kernels: implementation of the mask's operations; None chooses one by the size of the mask.

    Returns:
        int64 (m, 2), the other patches.

    Raises:
        SlideFailed: more patches are affected, or all (code ``tile_missing``).
    """
    boxes = np.concatenate([slide.missing_boxes(level) for level in sorted({stage.level for stage in plan})])
    if not len(boxes) or not len(coords):
        return coords
    if slide.vendor == APERIO:
        boxes = boxes[_shares(mask.mask, mask, boxes, inner=False) > 0]
    else:
        kernels = kernels or kernels_for(mask.mask.size)
        coloured = mask.mask & (kernels.saturation(overview.pixels) > mask.threshold)
        filled = _shares(mask.mask, mask, boxes) >= _LEAST_FILLED
        boxes = boxes[filled | (_shares(coloured, mask, boxes) >= _LEAST_TISSUE)]  # step 1
    affected = _overlapping(coords, plan[0].patch_level0, boxes)  # step 2
    count = int(np.count_nonzero(affected))
    if count > max_missing or (count and count == len(coords)):
        raise SlideFailed(
            f'slide "{slide.path.name}" has no bytes for tiles of tissue, which {count} of {len(coords)} patches need; '
            "copy or scan it again, or leave patches out with --max-missing",
            code="tile_missing",
        )
    if count:
        _log.warning(
            'slide "%s": leaving out %d of %d patches, because tiles have no bytes', slide.path.name, count, len(coords)
        )
    return coords[~affected]


def _shares(
    chosen: NDArray[np.bool_], mask: TissueMask, boxes: NDArray[np.int64], *, inner: bool = True
) -> NDArray[np.float64]:
    """Share of chosen pixels of the mask in each box, float64 (boxes,), without those at its border if ``inner``."""
    left, right = _span(mask.column_edges, boxes[:, 0], boxes[:, 2], inner)
    upper, lower = _span(mask.row_edges, boxes[:, 1], boxes[:, 3], inner)
    sums = np.pad(chosen.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # (height + 1, width + 1)
    inside = sums[lower, right] - sums[upper, right] - sums[lower, left] + sums[upper, left]
    share: NDArray[np.float64] = inside / np.maximum((right - left) * (lower - upper), 1)
    return share


def _span(
    edges: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64], inner: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last pixel (exclusive) of the mask between positions along one axis.

    If ``inner``, partly covered pixels and the outermost whole ones are left out, unless none is left.
    """
    last = len(edges) - 1
    end = np.minimum(end, edges[-1])
    first = np.searchsorted(edges, start, side="right") - 1
    after = np.searchsorted(edges, end, side="left")
    if inner:
        inner_first = np.searchsorted(edges, start, side="left") + 1
        inner_after = np.searchsorted(edges, end, side="right") - 2
        wide = inner_first < inner_after
        first, after = np.where(wide, inner_first, first), np.where(wide, inner_after, after)
    return np.clip(first, 0, last), np.clip(after, 0, last)


def _overlapping(coords: NDArray[np.int64], side: int, boxes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each square overlaps a box, bool (n,)."""
    found = np.zeros(len(coords), bool)
    for left, upper, right, lower in boxes.tolist():
        x, y = coords.T
        found |= (x < right) & (x + side > left) & (y < lower) & (y + side > upper)
    return found
