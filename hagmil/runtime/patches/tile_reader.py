"""The tile engine: patches at any offset and spacing, from encoded tiles that are decoded once each.

1. A stage's patches are known before the first is read: so is how many of them touch each tile.
2. A chunk of patches is read tile by tile, in one call of the tile kernel: a tile is decoded, and each of its parts
   copied to the patch that it belongs to, while the processor's cache still holds it. A tile that lies in one patch is
   decoded in place. Where a patch's pixels are means of squares of the level's, these are written in their stead.
3. Where patches are resampled otherwise, or a square lies in two tiles, the pixels that a patch needs are put together
   from tiles, and go the way of every other reader's pixels.
4. What lies beyond the level's edge is white; the padding of tiles there is never seen.

Tiles that further patches need are kept in a :class:`TileCache`, which all threads share. What it cannot lend at once,
since another thread is decoding it, is asked for again when the rest is done.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.memory.buffers import tile_buffer
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.reader import Footprint, PatchReader, SlidePatchReader, footprint, read_patch
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tiles.cache import TileCache
from hagmil.runtime.tiles.kernel import MAX_REDUCTION
from hagmil.runtime.tiles.protocol import EncodedTiles

CACHE_BYTES = 64 << 20
"""Decoded tiles kept for further patches, all threads together."""


class PatchReaderFactory:
    """What a stage's patches are read from: the tile engine where the level has JPEG tiles, else the slide's reader.

    Use it as a context; ``make_reader`` makes one thread's patch reader.

    Args:
        slide: an open slide.
        geometry: the stage's geometry on it.
        coords: int64 (n, 2), level-0 corners of all patches that will be read, each once.
        cache_bytes: decoded tiles kept for further patches.
    """

    def __init__(
        self, slide: Slide, geometry: StageGeometry, coords: NDArray[np.int64], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._tiles = slide.encoded_tiles(geometry.level)
        self.cache: TileCache | None = None
        """Decoded tiles; None where the slide's own reader decodes."""
        if self._tiles is not None:
            self.cache = TileCache(self._tiles, patches_per_tile(self._tiles, footprint(geometry), coords), cache_bytes)

    @property
    def decoded_tiles(self) -> int | None:
        """Tiles decoded so far, repeats counted; None where the slide's own reader decodes."""
        return None if self.cache is None else self.cache.decoded

    def make_reader(self, slide: Slide, geometry: StageGeometry) -> PatchReader:
        """A patch reader for one thread, on its fork of the slide."""
        if self._tiles is None or self.cache is None:
            return SlidePatchReader(slide, geometry)
        return TilePatchReader(self._tiles, self.cache, geometry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tiles is not None:
            self._tiles.close()


def patches_per_tile(tiles: EncodedTiles, seen: Footprint, coords: NDArray[np.int64]) -> NDArray[np.int32]:
    """How many patches touch each tile (step 1).

    Args:
        tiles: the level's.
        seen: the pixels that a patch needs.
        coords: int64 (n, 2), level-0 corners.

    Returns:
        int32 (tiles,), row after row.
    """
    corners = seen.corners(coords)
    side = np.array([tiles.tile_width, tiles.tile_height])
    most = np.array([tiles.across, tiles.down])
    first = np.clip(corners // side, 0, most)  # (n, 2): columns and rows
    after = np.clip(-(-(corners + seen.side_px) // side), 0, most)
    shape = (tiles.down + 1, tiles.across + 1)
    uses = np.zeros(shape, np.int64)
    inside = (first < after).all(axis=1) & (corners < (tiles.width, tiles.height)).all(axis=1)
    (left, upper), (right, lower) = first[inside].T, after[inside].T
    for rows, columns, sign in ((upper, left, 1), (upper, right, -1), (lower, left, -1), (lower, right, 1)):
        corners_at = np.bincount(rows * shape[1] + columns, minlength=uses.size)
        uses += sign * corners_at.reshape(shape)  # (tiles,) -> (down + 1, across + 1)
    # Summed up along both axes, the four corners of a rectangle fill it.
    return uses.cumsum(0).cumsum(1)[:-1, :-1].astype(np.int32).ravel()  # (down, across) -> (tiles,)


class TilePatchReader:
    """One thread's reader of patches from tiles; see the module's steps.

    Args:
        tiles: the level's encoded tiles.
        cache: the stage's decoded ones, shared by all threads.
        geometry: the stage's geometry.
    """

    def __init__(self, tiles: EncodedTiles, cache: TileCache, geometry: StageGeometry) -> None:
        self._tiles, self._cache, self._geometry = tiles, cache, geometry
        self._footprint = footprint(geometry)
        self._scratch = tile_buffer((tiles.tile_height, tiles.tile_width, 3))
        self._not_over: list[int] = []

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches into an array.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y), each among those that were announced.
            out: uint8 (n, patch_px, patch_px, 3), RGB, contiguous; overwritten.

        Raises:
            SlideFailed: a tile is damaged (code ``unreadable``).
        """
        corners = self._footprint.corners(coords)
        if self.tile_by_tile(corners):
            shrink = self._footprint.shrink
            needs = self._tiles.start(corners, out, shrink=shrink)
            self._fill(corners, out, needs, shrink=shrink, bypass_cache=True)  # steps 2 and 4
            return
        for row, (x, y) in enumerate(coords.tolist()):
            out[row] = read_patch(self, self._geometry, x, y)  # step 3
            self._cache.finish_uses(self._not_over)

    def tile_by_tile(self, corners: NDArray[np.int64]) -> bool:
        """Whether what tiles give to patches can be made of each tile alone: no square lies in two (step 2).

        Args:
            corners: int64 (n, 2), upper left corners (x, y) of the patches in the level's pixels.
        """
        shrink = self._footprint.shrink
        if self._footprint.resized or shrink > MAX_REDUCTION:
            return False
        return not (self._tiles.tile_width % shrink or self._tiles.tile_height % shrink or (corners % shrink).any())

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Put a rectangle of the level together from tiles: uint8 (height, width, 3).

        A patch may be read band by band. Its use of a tile is over with the band in which the tile ends; uses of tiles
        that reach below its last band are over when the patch is.
        """
        assert level == self._geometry.level
        region = tile_buffer((height, width, 3))
        corners, patches = np.array([[x, y]], np.int64), region[np.newaxis]
        touched = self._tiles.start(corners, patches, shrink=1)
        rows_over = self._tiles.down if y + height >= self._tiles.height else (y + height) // self._tiles.tile_height
        needs = {tile: int(tile // self._tiles.across < rows_over) for tile in touched}
        self._not_over = [tile for tile, over in needs.items() if not over]
        self._fill(corners, patches, needs, shrink=1, bypass_cache=False)
        return region

    def close(self) -> None:
        """The tiles belong to all threads; nothing is held here."""

    def _fill(
        self,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        needs: dict[int, int],
        *,
        shrink: int,
        bypass_cache: bool,
    ) -> None:
        """Fill patches from the tiles that they need."""
        tiles, cache = self._tiles, self._cache
        while needs:
            acquired = cache.acquire(needs)
            try:
                tiles.read(acquired, corners, patches, self._scratch, shrink=shrink, bypass_cache=bypass_cache)
            except BaseException:
                cache.release_undecoded(acquired)
                raise
            cache.release(acquired, needs)
