"""What a slide may give beside pixels: the encoded tiles of a level, for whoever hands them out to patches himself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.uint8]
"""A decoded tile, uint8 (tile_height, tile_width, 3)."""


@dataclass(frozen=True, slots=True)
class TileLoan:
    """Some tiles, and memory for them.

    Args:
        indices: which tiles, counted row after row.
        memories: what holds each of them; None where nobody else needs a tile, so that it is not to be kept.
        decoded: how many of them, from the first, are decoded already. The others are for the borrower to decode.
    """

    indices: list[int]
    memories: list[Tile | None]
    decoded: int


class EncodedTiles(Protocol):
    """Encoded tiles of one level; several threads may read at once."""

    width: int
    """Of the level, in pixels."""
    height: int
    tile_width: int
    """In pixels; tiles reach beyond the level's right and lower edge."""
    tile_height: int
    across: int
    """Tiles in a row."""
    down: int

    def start(self, corners: NDArray[np.int64], patches: NDArray[np.uint8], *, shrink: int) -> dict[int, int]:
        """Whiten patches that reach beyond the level, and say which tiles patches need.

        Args:
            corners: int64 (n, 2), upper left corners (x, y) of the patches in the level's pixels.
            shrink: pixels of the level, each way, that make one of a patch.
            patches: uint8 (n, height, width, 3), contiguous.

        Returns:
            Tiles, counted row after row, in the order of patches, and how many patches touch each.
        """

    def read(
        self,
        loan: TileLoan,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        scratch: Tile,
        *,
        shrink: int,
        past_cache: bool,
    ) -> None:
        """Decode what is not decoded of some tiles, and give patches the parts that they cover, or means of these.

        Args:
            loan: the tiles.
            corners: int64 (n, 2), upper left corners (x, y) of the patches in the level's pixels: whole numbers of
                ``shrink``, as the sides of tiles are.
            shrink: a pixel of a patch is the mean of so many of the level's each way.
            patches: uint8 (n, height, width, 3), contiguous; only what these tiles cover is written.
            scratch: for tiles that are not kept; overwritten.
            past_cache: whether patches are so many that they had better not pass through the processor's cache.

        Raises:
            SlideFailed: a tile is damaged (code ``unreadable``).
        """

    def close(self) -> None:
        """Let go of the file; closing twice does nothing."""
