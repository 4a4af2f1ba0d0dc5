"""What a slide may give beside pixels: the encoded tiles of a level, for whoever decodes them himself."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EncodedTiles(Protocol):
    """Encoded tiles of one level, which several threads may decode, one by one."""

    width: int
    """Of the level, in pixels."""
    height: int
    tile_width: int
    """In pixels; tiles reach beyond the level's right and lower edge."""
    tile_height: int
    across: int
    """Tiles in a row."""
    down: int

    def decode_into(self, tile: int, out: NDArray[np.uint8]) -> None:
        """Decode a tile, counted row after row, into a contiguous uint8 (tile_height, tile_width, 3).

        Raises SlideFailed (code ``unreadable``) where it is damaged.
        """

    def close(self) -> None:
        """Let go of the file; closing twice does nothing."""
