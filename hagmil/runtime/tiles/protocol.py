"""The encoded tiles of a level, for readers that decode tiles themselves and copy them to patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.uint8]
"""A decoded tile, uint8 (tile_height, tile_width, 3)."""


@dataclass(frozen=True, slots=True)
class AcquiredTiles:
    """Tiles acquired from the cache, and the buffers that hold them.

    Args:
        indices: the tiles, numbered row by row.
        buffers: the buffer of each tile; None for a tile that no other patch needs, which is not cached.
        decoded: number of tiles at the start of ``indices`` that are already decoded. The caller decodes the others.
    """

    indices: list[int]
    buffers: list[Tile | None]
    decoded: int


class EncodedTiles(Protocol):
    """The encoded tiles of one level. Several threads may call its methods at the same time."""

    width: int
    """Width of the level in pixels."""
    height: int
    """Height of the level in pixels."""
    tile_width: int
    """Width of a tile in pixels. The last tiles of a row or column may extend beyond the level."""
    tile_height: int
    """Height of a tile in pixels."""
    across: int
    """Number of tiles in a row."""
    down: int
    """Number of tiles in a column."""

    def start(self, corners: NDArray[np.int64], patches: NDArray[np.uint8], *, shrink: int) -> dict[int, int]:
        """Fill patches that extend beyond the level with white, and count the patches that touch each tile.

        Args:
            corners: int64 (n, 2), top-left corners (x, y) of the patches in pixels of the level.
            patches: uint8 (n, height, width, 3), contiguous.
            shrink: pixels of the level, along each axis, that become one pixel of a patch.

        Returns:
            The tiles that the patches need, in the order of the patches: tile index (row by row) to number of patches.
        """

    def read(
        self,
        acquired: AcquiredTiles,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        scratch: Tile,
        *,
        shrink: int,
        bypass_cache: bool,
    ) -> None:
        """Decode tiles where necessary, and write the pixels that they share with patches, or means of these pixels.

        Args:
            acquired: the tiles.
            corners: int64 (n, 2), top-left corners (x, y) of the patches in pixels of the level. Corners and tile
                sides are multiples of ``shrink``.
            patches: uint8 (n, height, width, 3), contiguous; only pixels that these tiles cover are written.
            scratch: buffer for tiles that are not cached; overwritten.
            shrink: pixels of the level, along each axis, whose mean is one pixel of a patch.
            bypass_cache: whether to write patches with streaming stores, which bypass the processor's cache. Use this
                for batches that are too large for the cache.

        Raises:
            SlideFailed: a tile is damaged (code ``unreadable``).
        """

    def close(self) -> None:
        """Close the file. Closing it again has no effect."""
