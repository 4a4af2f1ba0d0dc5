"""Decoded tiles, shared by all reader threads of a stage: each tile is decoded once, however many patches share it.

1. It is known beforehand how many patches touch each tile. The last of them lets the tile go.
2. Tiles are lent by the chunk. Those that are decoded are lent as they are. For the others, the first who asks gets
   memory to decode them to, and others find them when he has given them back; a tile that nobody else needs gets none.
3. A tile that somebody is decoding just now is left for a later loan. Who is left with such tiles alone waits, and has
   nothing on loan then: nobody waits for one who waits.
4. No more tiles are held than the budget allows. For room the oldest that nobody uses is let go, although it will
   have to be decoded again; tiles that find no room are left for a later loan too. So memory is bounded whatever
   the order of the patches is.
5. The memory of the tile that was let go last is used first, while the processor's cache still holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.memory.buffers import read_again
from hagmil.runtime.tiles.protocol import EncodedTiles, Tile, TileLoan

_FEWEST_TILES = 16


@dataclass(slots=True)
class _Held:
    pixels: Tile
    users: int = 1
    ready: bool = False


class TileCache:
    """Decoded tiles of one level.

    Args:
        tiles: the encoded ones.
        uses: int (tiles,), how many patches touch each tile.
        budget_bytes: decoded bytes that may be held; sixteen tiles at least.
    """

    def __init__(self, tiles: EncodedTiles, uses: NDArray[np.int32], budget_bytes: int) -> None:
        self._uses: list[int] = uses.tolist()
        self._shape = (tiles.tile_height, tiles.tile_width, 3)
        self._most = max(budget_bytes // (tiles.tile_height * tiles.tile_width * 3), _FEWEST_TILES)
        self._held: dict[int, _Held] = {}
        self._free: list[Tile] = []
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self.decoded = 0
        """Tiles decoded so far, repeats counted."""

    @property
    def held(self) -> int:
        """Decoded tiles that are held."""
        return len(self._held)

    def borrow(self, wanted: dict[int, int]) -> TileLoan:
        """Borrow those of some tiles that can be had now: one at least, for which it may wait.

        Args:
            wanted: for each tile how many of its uses will be over when it is given back.

        Returns:
            The tiles, each to be given back or to be abandoned before anything else is borrowed.
        """
        held, uses_left = self._held, self._uses
        with self._changed:
            while True:
                indices: list[int] = []
                memories: list[Tile | None] = []
                for tile in wanted:  # all that are decoded, before room is made for others
                    found = held.get(tile)
                    if found is not None and found.ready:
                        found.users += 1
                        indices.append(tile)
                        memories.append(found.pixels)
                decoded = len(indices)
                for tile, uses in wanted.items():
                    if tile in held:
                        continue  # it is decoded, or being decoded: step 3
                    if uses_left[tile] <= uses:
                        memories.append(None)
                    elif self._has_room():
                        try:
                            memories.append(self._hold(tile))
                        except MemoryError:
                            if memories:
                                break  # what is on loan must come back before this thread may end
                            raise
                    else:
                        continue
                    indices.append(tile)
                if memories:
                    return TileLoan(indices, memories, decoded)
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1

    def give_back(self, loan: TileLoan, wanted: dict[int, int]) -> None:
        """Give back tiles that were borrowed, all of them decoded now.

        Args:
            loan: the tiles.
            wanted: what was asked for; the tiles of the loan are taken out of it, so that the rest can be asked for.
        """
        with self._changed:
            self.decoded += len(loan.indices) - loan.decoded
            for tile, memory in zip(loan.indices, loan.memories, strict=True):
                if memory is not None:
                    held = self._held[tile]
                    held.users -= 1
                    held.ready = True
                self._count(tile, wanted.pop(tile))
            self._tell()

    def abandon(self, loan: TileLoan) -> None:
        """Give back tiles that were borrowed when not all of them could be decoded; others may try."""
        with self._changed:
            for number, (tile, memory) in enumerate(zip(loan.indices, loan.memories, strict=True)):
                if number < loan.decoded:
                    self._held[tile].users -= 1
                elif memory is not None:
                    self._let_go(tile)
            self._tell()

    def use_up(self, tiles: Iterable[int]) -> None:
        """Count one use of each of some tiles as over, without having borrowed them."""
        with self._changed:
            for tile in tiles:
                self._count(tile, 1)
            self._tell()

    def _count(self, tile: int, uses: int) -> None:
        """Step 1."""
        self._uses[tile] -= uses
        held = self._held.get(tile)
        if self._uses[tile] <= 0 and held is not None and held.users == 0:
            self._let_go(tile)

    def _has_room(self) -> bool:
        """Step 4."""
        if len(self._held) < self._most:
            return True
        oldest = next((tile for tile, held in self._held.items() if held.users == 0), None)
        if oldest is None:
            return False
        self._let_go(oldest)
        return True

    def _hold(self, tile: int) -> Tile:
        """Memory for a tile that is decoded next (step 5)."""
        pixels = self._free.pop() if self._free else read_again(self._shape)
        self._held[tile] = _Held(pixels)
        return pixels

    def _let_go(self, tile: int) -> None:
        self._free.append(self._held.pop(tile).pixels)

    def _tell(self) -> None:
        if self._waiting:
            self._changed.notify_all()
