"""The quadtree of patches: the coarsest stage's grid over tissue, and the children of patches.

The patches of a stage lie on a grid that starts at the slide's top-left corner. Each patch is divided exactly into f²
children, f along each axis, where f is the ratio of the spacings of both stages. Children are in column order: row i of
a stage has the rows f²·i ... f²·i + f²-1 of the next finer stage as children, for f = 2 at (0, 0), (0, s), (s, 0) and
(s, s) as (x, y). Patches may reach beyond the right and lower edges of the slide, and their children may lie outside
entirely; these keep their rows, so that row numbers stay valid.

Coordinates are int64 (n, 2), level-0 top-left corners (x, y). This module is arithmetic only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import UsageError
from hagmil.runtime.tissue.mask import TissueMask
from hagmil.units import Size


def coarse_grid(size: Size, patch_level0: int, mask: TissueMask, min_share: float) -> NDArray[np.int64]:
    """Return the patches of the coarsest stage that contain enough tissue.

    Args:
        size: size of the slide in level-0 pixels.
        patch_level0: side of a patch in level-0 pixels.
        mask: the tissue mask of the slide.
        min_share: least share of tissue in the part of a patch that lies inside the slide. Patches without any tissue
            are always left out, so 0 keeps every patch with some tissue.

    Returns:
        int64 (n, 2), sorted by x, then y; (0, 2) if there is no tissue.
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
    """Return the children of patches at the next finer stage.

    Args:
        coords: int64 (n, 2), corners of the parents.
        patch_level0: side of a parent in level-0 pixels.
        factor: number of children along each axis, f.

    Returns:
        int64 (n · f², 2), the children of each parent in turn, in column order.

    Raises:
        UsageError: the side is not divisible by the factor.
    """
    offsets = _offsets(patch_level0, factor)
    return (coords[:, np.newaxis, :] + offsets).reshape(-1, 2)  # (n, 1, 2) + (f², 2) -> (n, f², 2) -> (n · f², 2)


def child_rows(rows: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
    """Return the rows of the children in the next finer stage's table.

    Args:
        rows: int64 (k,), rows of the parents, in any order.
        factor: number of children along each axis, f.

    Returns:
        int64 (k · f²,), f²·i ... f²·i + f²-1 for each i in turn.
    """
    family = factor * factor
    return (rows[:, np.newaxis] * family + np.arange(family)).reshape(-1)  # (k, f²) -> (k · f²,)


def reading_order(coords: NDArray[np.int64], patch_level0: int) -> NDArray[np.int64]:
    """Return the rows in Z-order (Morton order), so that neighbours are read soon after one another.

    Consecutive rows cover a compact area, so a decoded tile has to be cached for a short time only.

    Args:
        coords: int64 (n, 2), corners of patches of one stage.
        patch_level0: side of a patch in level-0 pixels.

    Returns:
        int64 (n,), a permutation of the rows; equal patches keep their order.
    """
    cells = (coords - coords.min(axis=0, initial=0)) // patch_level0
    code = np.zeros(len(coords), np.int64)
    for bit in range(int(cells.max(initial=0)).bit_length()):  # interleave the bits of x and y
        code |= ((cells[:, 0] >> bit & 1) << (2 * bit + 1)) | ((cells[:, 1] >> bit & 1) << (2 * bit))
    return np.argsort(code, kind="stable")


def _offsets(patch_level0: int, factor: int) -> NDArray[np.int64]:
    """Return the offsets from a parent's corner to its children's, int64 (f², 2): (0, 0), (0, s), ..., (s, 0), ..."""
    if factor < 1 or patch_level0 % factor:
        raise UsageError(f"a patch of {patch_level0} level-0 pixels is not divisible into {factor} children per axis")
    side = patch_level0 // factor
    x, y = np.divmod(np.arange(factor * factor, dtype=np.int64), factor)
    return np.stack([x, y], axis=1) * side
