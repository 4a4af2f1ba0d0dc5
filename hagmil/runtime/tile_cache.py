"""Decoded tiles, shared by all reader threads of a stage: each tile is decoded once, however many patches share it.

1. It is known beforehand how many patches touch each tile. The last of them lets the tile go.
2. Who asks for a tile first decodes it; who asks meanwhile waits for that one tile, and for nothing else.
3. No more tiles are held than the budget allows. Beyond it the oldest that nobody uses is let go, although it
   will have to be decoded again: memory is bounded whatever the order of the patches is.
4. The memory of the tile that was let go last is used first, while the processor's cache still holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.encoded_tiles import EncodedTiles

_FEWEST_TILES = 16


@dataclass(slots=True)
class _Held:
    pixels: NDArray[np.uint8]
    users: int = 1
    ready: bool = False


class TileCache:
    """Decoded tiles of one level.

    Args:
        tiles: the encoded ones.
        uses: int (tiles,), how often each tile will be borrowed; changed as tiles are given back.
        budget_bytes: decoded bytes that may be held; sixteen tiles at least.
    """

    def __init__(self, tiles: EncodedTiles, uses: NDArray[np.int32], budget_bytes: int) -> None:
        self._tiles = tiles
        self._uses: list[int] = uses.tolist()
        self._shape = (tiles.tile_height, tiles.tile_width, 3)
        self._most = max(budget_bytes // (tiles.tile_height * tiles.tile_width * 3), _FEWEST_TILES)
        self._held: dict[int, _Held] = {}
        self._free: list[NDArray[np.uint8]] = []
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self.decoded = 0
        """Tiles decoded so far, repeats counted."""

    @property
    def held(self) -> int:
        """Decoded tiles that are held."""
        return len(self._held)

    def alone(self, tile: int) -> bool:
        """Whether one patch only will ever need a tile."""
        return self._uses[tile] == 1

    def decode_into(self, tile: int, out: NDArray[np.uint8]) -> None:
        """Decode a tile that one patch only needs straight into it."""
        self._tiles.decode_into(tile, out)
        with self._changed:
            self.decoded += 1

    def borrow(self, tile: int) -> NDArray[np.uint8]:
        """A decoded tile, uint8 (tile_height, tile_width, 3), not to be written to; to be given back.

        Raises:
            SlideFailed: the tile is damaged.
        """
        with self._changed:
            while (held := self._held.get(tile)) is not None:
                if held.ready:
                    held.users += 1
                    return held.pixels
                self._wait()  # step 2
            self._make_room()
            pixels = self._free.pop() if self._free else np.empty(self._shape, np.uint8)  # step 4
            held = self._held[tile] = _Held(pixels)
            self.decoded += 1
        try:
            self._tiles.decode_into(tile, pixels)
        except BaseException:
            with self._changed:
                del self._held[tile]
                if self._waiting:
                    self._changed.notify_all()
            raise
        with self._changed:
            held.ready = True
            if self._waiting:
                self._changed.notify_all()
        return pixels

    def give_back(self, tile: int, uses: int) -> None:
        """Return a borrowed tile.

        Args:
            tile: its index.
            uses: how many of the uses that were announced are over.
        """
        with self._changed:
            held = self._held[tile]
            held.users -= 1
            self._count(tile, uses)

    def use_up(self, tiles: Iterable[int]) -> None:
        """Count one use of each of some tiles as over, without having borrowed them."""
        with self._changed:
            for tile in tiles:
                self._count(tile, 1)

    def _count(self, tile: int, uses: int) -> None:
        """Step 1."""
        self._uses[tile] -= uses
        held = self._held.get(tile)
        if self._uses[tile] <= 0 and held is not None and held.users == 0 and held.ready:
            self._free.append(self._held.pop(tile).pixels)

    def _wait(self) -> None:
        self._waiting += 1
        self._changed.wait()
        self._waiting -= 1

    def _make_room(self) -> None:
        """Step 3."""
        if len(self._held) < self._most:
            return
        oldest = next((tile for tile, held in self._held.items() if held.users == 0 and held.ready), None)
        if oldest is not None:
            self._free.append(self._held.pop(oldest).pixels)
