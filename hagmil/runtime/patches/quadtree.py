"""The quadtree: which squares of a slide a stage may read, and how stages nest.

A stage's squares lie on a grid of its own side, anchored at the slide's top-left corner. Each has f² children
that tile it exactly, f along each axis; f is the ratio of the stages' spacings. Rows stand in column order:
row i of a stage has rows f²·i ... f²·i + f²-1 of the next finer one as its children, for f = 2 at (0, 0),
(0, s), (s, 0), (s, s) as (x, y). At the slide's right and lower edge a square may reach beyond it, and its
children may lie outside altogether: they keep their rows, or row numbers would mean nothing.

Coordinates are int64 (n, 2), level-0 top-left corners (x, y). Plain arithmetic, no input and output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import UsageError
from hagmil.runtime.tissue.mask import TissueMask
from hagmil.units import Size


def coarse_grid(size: Size, patch_level0: int, mask: TissueMask, min_share: float) -> NDArray[np.int64]:
    """The squares of the coarsest stage that hold enough tissue.

    Args:
        size: the slide's, in level-0 pixels.
        patch_level0: the squares' side in level-0 pixels.
        mask: the slide's tissue.
        min_share: the least share of a square's part inside the slide that is tissue. A square without any
            tissue is left out whatever this is, so 0 keeps every square that holds some.

    Returns:
        int64 (n, 2), sorted by x, then y; (0, 2) where there is no tissue.
    """
    x, y = np.meshgrid(
        np.arange(0, size.width, patch_level0, dtype=np.int64),
        np.arange(0, size.height, patch_level0, dtype=np.int64),
        indexing="ij",
    )
    coords = np.stack([x.ravel(), y.ravel()], axis=1)  # two (columns, rows) -> (columns · rows, 2)
    share = mask.shares(coords, patch_level0)
    return coords[(share > 0.0) & (share >= min_share)]


def children(coords: NDArray[np.int64], patch_level0: int, factor: int) -> NDArray[np.int64]:
    """The squares of the next finer stage under each square.

    Args:
        coords: int64 (n, 2), corners of the parents.
        patch_level0: the parents' side in level-0 pixels.
        factor: children along each axis, f.

    Returns:
        int64 (n · f², 2), a parent's children one after the other, in column order.

    Raises:
        UsageError: the side does not divide by the factor, so that children would not tile their parent.
    """
    offsets = _offsets(patch_level0, factor)
    return (coords[:, np.newaxis, :] + offsets).reshape(-1, 2)  # (n, 1, 2) + (f², 2) -> (n, f², 2) -> (n · f², 2)


def child_rows(rows: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
    """The rows of the next finer stage's table that are the children of some rows.

    Args:
        rows: int64 (k,), rows of the parents' table, in any order.
        factor: children along each axis, f.

    Returns:
        int64 (k · f²,), f²·i ... f²·i + f²-1 for each i in turn.
    """
    family = factor * factor
    return (rows[:, np.newaxis] * family + np.arange(family)).reshape(-1)  # (k, f²) -> (k · f²,)


def reading_order(coords: NDArray[np.int64], patch_level0: int) -> NDArray[np.int64]:
    """Rows in an order in which neighbours are read soon after one another: that of the quadtree's depth first.

    Any run of rows then covers a compact area, so that few tiles are needed by patches far apart in time.

    Args:
        coords: int64 (n, 2), corners of squares of one stage.
        patch_level0: the squares' side in level-0 pixels.

    Returns:
        int64 (n,), a permutation of the rows; equal squares keep their order.
    """
    cells = (coords - coords.min(axis=0, initial=0)) // patch_level0
    code = np.zeros(len(coords), np.int64)
    for bit in range(int(cells.max(initial=0)).bit_length()):  # x and y of a cell, their bits in turn
        code |= ((cells[:, 0] >> bit & 1) << (2 * bit + 1)) | ((cells[:, 1] >> bit & 1) << (2 * bit))
    return np.argsort(code, kind="stable")


def _offsets(patch_level0: int, factor: int) -> NDArray[np.int64]:
    """From a parent's corner to its children's, int64 (f², 2): (0, 0), (0, s), ..., (s, 0), ..."""
    if factor < 1 or patch_level0 % factor:
        raise UsageError(f"a patch of {patch_level0} level-0 pixels does not divide into {factor} children a side")
    side = patch_level0 // factor
    x, y = np.divmod(np.arange(factor * factor, dtype=np.int64), factor)
    return np.stack([x, y], axis=1) * side
