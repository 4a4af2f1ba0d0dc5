"""A tissue mask with its position on the slide, and areas of tissue that are exact to the level-0 pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """The tissue mask of a slide.

    Args:
        mask: bool (height, width); True is tissue.
        column_edges: int64 (width + 1,), level-0 x of the left edge of each column, increasing from 0; the last value
            is the width of the slide.
        row_edges: int64 (height + 1,), level-0 y of the upper edge of each row; the last value is the slide's height.
        downsample: level-0 pixels per pixel of the mask, mean of both axes.
        spacing_um: um per pixel of the mask.
        threshold: threshold of the saturation, 0 to 255; tissue is strictly above it.
    """

    mask: NDArray[np.bool_]
    column_edges: NDArray[np.int64]
    row_edges: NDArray[np.int64]
    downsample: float
    spacing_um: float
    threshold: int

    @property
    def area_um2(self) -> float:
        """Area of the tissue in um²."""
        return float(np.count_nonzero(self.mask)) * self.spacing_um**2

    def shares(self, coords: NDArray[np.int64], patch_level0: int) -> NDArray[np.float64]:
        """Return the share of tissue in squares, over the part of each square that lies on the slide.

        Areas are counted in whole level-0 pixels. A share is therefore 0 only if there is no tissue at all, and 1 only
        if everything is tissue.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y).
            patch_level0: side of the squares in level-0 pixels.

        Returns:
            float64 (n,), 0 to 1; 0 for a square that lies entirely outside.
        """
        tissue = np.zeros(len(coords), dtype=np.int64)
        order = np.argsort(coords[:, 1], kind="stable")
        ys, starts = np.unique(coords[order, 1], return_index=True)
        widths = np.diff(self.column_edges)
        for y, start, after in zip(ys.tolist(), starts, np.append(starts, len(order))[1:], strict=True):
            chosen = order[start:after]
            tissue[chosen] = self._tissue_of_row(y, coords[chosen, 0], patch_level0, widths)
        width = _covered(coords[:, 0], patch_level0, int(self.column_edges[-1]))
        height = _covered(coords[:, 1], patch_level0, int(self.row_edges[-1]))
        share: NDArray[np.float64] = tissue / np.maximum(width * height, 1)
        return share

    def _tissue_of_row(self, y: int, x: NDArray[np.int64], side: int, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level-0 pixels of tissue, int64 (n,), in squares with the same y and left edges x, int64 (n,).

        ``widths`` are those of the mask's columns.
        """
        first = max(int(np.searchsorted(self.row_edges, y, side="right")) - 1, 0)
        after = int(np.searchsorted(self.row_edges[:-1], y + side, side="left"))
        heights = np.diff(self.row_edges[first : after + 1].clip(y, y + side)).astype(np.float64)
        weighted = heights @ self.mask[first:after].astype(np.float64)  # exact, and faster than with int64
        per_column = weighted.astype(np.int64)  # (width,)
        before = np.concatenate([[0], (per_column * widths).cumsum()])  # (width + 1,)
        left_of = self._left_of(np.concatenate([x, x + side]), per_column, before)
        return left_of[len(x) :] - left_of[: len(x)]

    def _left_of(
        self, x: NDArray[np.int64], per_column: NDArray[np.int64], before: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Tissue to the left of each x, if column i has per_column[i] tissue pixels per level-0 pixel of its width."""
        inside = x.clip(0, self.column_edges[-1])
        column = np.minimum(self.column_edges.searchsorted(inside, side="right"), len(per_column)) - 1
        left: NDArray[np.int64] = before[column] + (inside - self.column_edges[column]) * per_column[column]
        return left


def _covered(start: NDArray[np.int64], side: int, extent: int) -> NDArray[np.int64]:
    """Length of the part of [start, start + side) that lies within [0, extent)."""
    return np.clip(start + side, 0, extent) - np.clip(start, 0, extent)
