"""Connected components of a mask, computed from runs: consecutive True pixels of a row.

A tissue mask of a few million pixels has a few thousand runs, so memory and time depend on the length of its outline.
All CPU kernels share these steps except step 3, which takes more than a few array operations and is passed in.

1. Find the runs of all rows.
2. Assign keys to the ends of each run, so that all rows lie on one line. Run a touches run b of the next row if
   ``stop[a] > start[b] - stride - reach`` and ``start[a] < stop[b] - stride + reach``. ``reach`` is 0 for
   4-connectivity (sides) and 1 for 8-connectivity (sides and corners).
3. Join touching runs: label each run with the smallest index in its component (``JoinRuns``).
4. Sum the area of each component, and draw the runs of the selected components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDES = 0
"""``reach`` of 4-connectivity."""

CORNERS = 1
"""``reach`` of 8-connectivity."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The runs of True pixels of a mask, row by row.

    Args:
        start: int64 (runs,), key of the first column: row · stride + column.
        stop: int64 (runs,), key of the column after the last.
        stride: difference of the keys of two rows: the width of the mask + 1, so that the end of a row and the start of
            the next one are separate for a reach of 1 too.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    stride: int


JoinRuns = Callable[[Runs, int], NDArray[np.int64]]
"""Step 3: from runs and reach to int64 (runs,), for each run the smallest index of a run in its component."""


def large_objects(mask: NDArray[np.bool_], min_area_px: int, join: JoinRuns) -> NDArray[np.bool_]:
    """Return the 8-connected True components of at least ``min_area_px`` pixels.

    Args:
        mask: bool (height, width).
        min_area_px: minimum area of a component.
        join: function for step 3.

    Returns:
        bool (height, width).
    """
    runs = find_runs(mask)
    area = _component_area(runs, join(runs, CORNERS))
    return _draw_runs(runs, area >= min_area_px, mask.shape)


def small_holes(mask: NDArray[np.bool_], min_area_px: int, join: JoinRuns) -> NDArray[np.bool_]:
    """Return the enclosed 4-connected False components of fewer than ``min_area_px`` pixels.

    Components that touch the edge of the image are not enclosed.

    Args:
        mask: bool (height, width).
        min_area_px: minimum area of a hole that is not small.
        join: function for step 3.

    Returns:
        bool (height, width), True in small holes.
    """
    height, width = mask.shape
    runs = find_runs(~mask)
    root = join(runs, SIDES)
    row, column = np.divmod(runs.start, runs.stride)
    at_edge = (row == 0) | (row == height - 1) | (column == 0) | (runs.stop - row * runs.stride == width)
    is_open = np.zeros(root.size, dtype=np.bool_)
    is_open[root[at_edge]] = True
    return _draw_runs(runs, (_component_area(runs, root) < min_area_px) & ~is_open[root], mask.shape)


def find_runs(mask: NDArray[np.bool_]) -> Runs:
    """Find the runs of a mask, row by row (steps 1 and 2).

    Args:
        mask: bool (height, width).
    """
    height, width = mask.shape
    stride = width + 1
    framed = np.zeros((height, width + 2), dtype=np.bool_)  # column c of the mask is column c + 1
    framed[:, 1:-1] = mask
    changes = np.flatnonzero(framed[:, 1:] != framed[:, :-1])  # (height, stride) flat: start, stop, ...
    return Runs(start=changes[0::2], stop=changes[1::2], stride=stride)


def _component_area(runs: Runs, root: NDArray[np.int64]) -> NDArray[np.int64]:
    """Area of the component of each run in pixels, int64 (runs,) (step 4)."""
    area = np.zeros(root.size, dtype=np.int64)
    np.add.at(area, root, runs.stop - runs.start)
    return area[root]


def _draw_runs(runs: Runs, wanted: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Draw the wanted runs: bool (height, width) (step 4)."""
    height, width = shape
    turns = np.zeros(height * runs.stride, dtype=np.bool_)
    turns[runs.start[wanted]] = True
    turns[runs.stop[wanted]] = True
    rows = turns.reshape(height, runs.stride)  # flat keys -> (height, stride)
    return np.ascontiguousarray(np.logical_xor.accumulate(rows, axis=1)[:, :width])
