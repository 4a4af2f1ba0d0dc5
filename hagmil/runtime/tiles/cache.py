"""Decoded tiles shared by all reader threads of a stage, so that each tile is decoded once for all patches.

1. The number of patches that touch each tile is known in advance. The tile is removed after its last use.
2. A thread acquires the tiles of a chunk of patches in one call. Tiles that are already decoded are returned as they
   are. For any other tile, the first thread gets a buffer to decode it into; the tile is available to other threads
   after that thread has released it. A tile that no other patch needs gets no buffer.
3. A tile that another thread is decoding is left for the next call. A thread waits only if all of its tiles are of this
   kind. It holds no tiles while it waits, so a deadlock is impossible.
4. The cache never holds more tiles than its budget. To make room it removes the oldest tile that is not in use, which
   may have to be decoded again. Tiles that do not fit are left for the next call too. Memory is therefore bounded for
   every order of patches.
5. The buffer that was freed last is reused first, because it is probably still in the processor's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.memory.buffers import tile_buffer
from hagmil.runtime.tiles.protocol import AcquiredTiles, EncodedTiles, Tile

_MIN_TILES = 16


@dataclass(slots=True)
class _Held:
    pixels: Tile
    users: int = 1
    ready: bool = False


class TileCache:
    """The decoded tiles of one level.

    Args:
        tiles: the encoded tiles of the level.
        uses: int (tiles,), number of patches that touch each tile.
        budget_bytes: maximum size of the decoded tiles; the cache may always hold 16 tiles.
    """

    def __init__(self, tiles: EncodedTiles, uses: NDArray[np.int32], budget_bytes: int) -> None:
        self._uses: list[int] = uses.tolist()
        self._shape = (tiles.tile_height, tiles.tile_width, 3)
        self._max_tiles = max(budget_bytes // (tiles.tile_height * tiles.tile_width * 3), _MIN_TILES)
        self._held: dict[int, _Held] = {}
        self._free: list[Tile] = []
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self.decoded = 0
        """Number of tiles decoded so far, including repeats."""

    @property
    def held(self) -> int:
        """Number of decoded tiles in the cache."""
        return len(self._held)

    def acquire(self, wanted: dict[int, int]) -> AcquiredTiles:
        """Acquire those of the wanted tiles that are available now: at least one, for which the call may wait.

        Args:
            wanted: for each tile, the number of its uses that end when it is released.

        Returns:
            The tiles. Release them before acquiring others.

        Raises:
            MemoryError: there is no memory for a tile, and none of the wanted tiles could be acquired.
        """
        with self._changed:
            while (acquired := self._available(wanted)) is None:
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            return acquired

    def release(self, acquired: AcquiredTiles, wanted: dict[int, int]) -> None:
        """Release tiles that are all decoded.

        Args:
            acquired: the tiles.
            wanted: the argument of ``acquire``; the released tiles are removed from it.
        """
        with self._changed:
            self.decoded += len(acquired.indices) - acquired.decoded
            for tile, buffer in zip(acquired.indices, acquired.buffers, strict=True):
                if buffer is not None:
                    held = self._held[tile]
                    held.users -= 1
                    held.ready = True
                self._count(tile, wanted.pop(tile))
            self._notify()

    def release_undecoded(self, acquired: AcquiredTiles) -> None:
        """Release tiles after a decoding error; other threads may then try to decode them."""
        with self._changed:
            for number, (tile, buffer) in enumerate(zip(acquired.indices, acquired.buffers, strict=True)):
                if number < acquired.decoded:
                    self._held[tile].users -= 1
                elif buffer is not None:
                    self._remove(tile)
            self._notify()

    def finish_uses(self, tiles: Iterable[int]) -> None:
        """Count one use of each tile as ended, for tiles that are not acquired."""
        with self._changed:
            for tile in tiles:
                self._count(tile, 1)
            self._notify()

    def _available(self, wanted: dict[int, int]) -> AcquiredTiles | None:
        """Acquire the wanted tiles that are available now; None if there are none (steps 2 to 4)."""
        indices: list[int] = []
        buffers: list[Tile | None] = []
        for tile in wanted:  # all decoded tiles first, before others are removed
            found = self._held.get(tile)
            if found is not None and found.ready:
                found.users += 1
                indices.append(tile)
                buffers.append(found.pixels)
        decoded = len(indices)
        for tile, uses in wanted.items():
            if tile in self._held:
                continue  # already decoded, or being decoded (step 3)
            if self._uses[tile] <= uses:
                buffers.append(None)
            elif self._has_room():
                try:
                    buffers.append(self._hold(tile))
                except MemoryError:
                    if buffers:
                        break  # the acquired tiles must be released before this thread may fail
                    raise
            else:
                continue
            indices.append(tile)
        return AcquiredTiles(indices, buffers, decoded) if buffers else None

    def _count(self, tile: int, uses: int) -> None:
        """Count uses as ended, and remove the tile after its last use (step 1)."""
        self._uses[tile] -= uses
        held = self._held.get(tile)
        if self._uses[tile] <= 0 and held is not None and held.users == 0:
            self._remove(tile)

    def _has_room(self) -> bool:
        """Return whether the cache has room for one more tile, after removing an unused tile if needed (step 4)."""
        if len(self._held) < self._max_tiles:
            return True
        oldest = next((tile for tile, held in self._held.items() if held.users == 0), None)
        if oldest is None:
            return False
        self._remove(oldest)
        return True

    def _hold(self, tile: int) -> Tile:
        """Add a tile that is about to be decoded, and return its buffer (step 5)."""
        pixels = self._free.pop() if self._free else tile_buffer(self._shape)
        self._held[tile] = _Held(pixels)
        return pixels

    def _remove(self, tile: int) -> None:
        self._free.append(self._held.pop(tile).pixels)

    def _notify(self) -> None:
        if self._waiting:
            self._changed.notify_all()
