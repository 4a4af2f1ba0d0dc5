"""Connected components of a mask, found over runs: the unbroken stretches of a row.

A mask of tissue has some thousand runs where it has some million pixels, so memory and time follow its
outline. Sets of kernels share these steps; step 3, the one that cannot be said in a few array operations, is
theirs to give.

1. Find the runs of every row.
2. Give each run's ends a key, so that all rows lie on one line: run a of the row above run b touches it
   exactly if ``stop[a] > start[b] - stride - reach`` and ``start[a] < stop[b] - stride + reach``; reach is 0
   where only sides count (4-connectivity), 1 where corners do, too (8).
3. Join touching runs, until each carries the least index of its component (``JoinRuns``).
4. Add up the area of each component, and draw the runs of those that are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDES = 0
"""Reach of 4-connectivity."""

CORNERS = 1
"""Reach of 8-connectivity."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The unbroken stretches of True in each row of a mask, in reading order.

    Args:
        start: int64 (runs,), key of the first column: row · stride + column.
        stop: int64 (runs,), key of the column after the last.
        stride: what one row adds to a key; the mask's width + 1, so that a run's stop is no start of the
            next row, even within a reach of 1.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    stride: int


JoinRuns = Callable[[Runs, int], NDArray[np.int64]]
"""Step 3: from runs and reach to int64 (runs,), for each run the least index of a run of its component."""


def large_objects(mask: NDArray[np.bool_], min_area_px: int, join: JoinRuns) -> NDArray[np.bool_]:
    """The 8-connected True components of at least so many pixels.

    Args:
        mask: bool (height, width).
        min_area_px: the least area that stays.
        join: step 3.

    Returns:
        bool (height, width).
    """
    runs = find_runs(mask)
    area = _component_area(runs, join(runs, CORNERS))
    return _draw_runs(runs, area >= min_area_px, mask.shape)


def small_holes(mask: NDArray[np.bool_], min_area_px: int, join: JoinRuns) -> NDArray[np.bool_]:
    """The enclosed 4-connected False components of fewer pixels; what touches the image's edge is not
    enclosed.

    Args:
        mask: bool (height, width).
        min_area_px: the least area of a hole that is not small.
        join: step 3.

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
    """Steps 1 and 2.

    Args:
        mask: bool (height, width).

    Returns:
        Its runs in reading order.
    """
    height, width = mask.shape
    stride = width + 1
    framed = np.zeros((height, width + 2), dtype=np.bool_)  # column c of the mask stands at c + 1
    framed[:, 1:-1] = mask
    changes = np.flatnonzero(framed[:, 1:] != framed[:, :-1])  # (height, stride) flat: start, stop, ...
    return Runs(start=changes[0::2], stop=changes[1::2], stride=stride)


def _component_area(runs: Runs, root: NDArray[np.int64]) -> NDArray[np.int64]:
    """Step 4: int64 (runs,), for each run the number of pixels of its component."""
    area = np.zeros(root.size, dtype=np.int64)
    np.add.at(area, root, runs.stop - runs.start)
    return area[root]


def _draw_runs(runs: Runs, wanted: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Step 4: bool (height, width), True in the wanted runs."""
    height, width = shape
    turns = np.zeros(height * runs.stride, dtype=np.bool_)
    turns[runs.start[wanted]] = True
    turns[runs.stop[wanted]] = True
    rows = turns.reshape(height, runs.stride)  # flat keys -> (height, stride)
    return np.ascontiguousarray(np.logical_xor.accumulate(rows, axis=1)[:, :width])
