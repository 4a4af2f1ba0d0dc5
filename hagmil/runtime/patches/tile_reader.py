"""Read patches at any offset and spacing from encoded tiles, decoding each tile once.

1. All patches of a stage are known in advance, and so is the number of patches that need each tile.
2. A chunk of patches is read tile by tile, in one call of the tile kernel. A tile is decoded, and its parts are copied
   to their patches while the tile is in the processor's cache. A tile that lies in one patch is decoded in place. If
   the pixels of a patch are means of squares of the level's pixels, the means are written instead.
3. If patches are resampled in another way, or a square lies in two tiles, the region of each patch is assembled from
   tiles and then resampled as by any other reader.
4. Pixels outside the level are white; the padding of tiles is never used.

Decoded tiles that other patches need are kept in a :class:`TileCache`, which all threads share. Tiles that another
thread is decoding are requested again after the others have been used.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.memory.buffers import tile_buffer
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.reader import Footprint, PatchReader, SlidePatchReader, footprint_of, read_patch
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tiles.cache import TileCache
from hagmil.runtime.tiles.kernel import MAX_REDUCTION
from hagmil.runtime.tiles.protocol import EncodedTiles

CACHE_BYTES = 64 << 20
"""Size of the cache of decoded tiles, which all threads share."""


class PatchReaderFactory:
    """Makes the patch readers of one stage: from encoded tiles if the level has JPEG tiles, else from the slide.

    This is a context manager; leaving it closes the tiles.

    Args:
        slide: an open slide.
        geometry: geometry of the stage on this slide.
        coords: int64 (n, 2), level-0 top-left corners (x, y) of all patches that will be read, each of them once.
        cache_bytes: size of the cache of decoded tiles.
    """

    def __init__(
        self, slide: Slide, geometry: StageGeometry, coords: NDArray[np.int64], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._tiles = slide.encoded_tiles(geometry.level)
        self.cache: TileCache | None = None
        """Decoded tiles; None if patches are read from the slide."""
        if self._tiles is not None:
            uses = patches_per_tile(self._tiles, footprint_of(geometry), coords)
            self.cache = TileCache(self._tiles, uses, cache_bytes)

    @property
    def decoded_tiles(self) -> int | None:
        """Number of tiles decoded so far, including repeats; None if patches are read from the slide."""
        return None if self.cache is None else self.cache.decoded

    def make_reader(self, slide: Slide, geometry: StageGeometry) -> PatchReader:
        """Make a patch reader for one thread from the thread's fork of the slide."""
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


def patches_per_tile(tiles: EncodedTiles, footprint: Footprint, coords: NDArray[np.int64]) -> NDArray[np.int32]:
    """Count the patches that need each tile (step 1).

    Args:
        tiles: the encoded tiles of the level.
        footprint: the pixels of the level that are read for a patch.
        coords: int64 (n, 2), level-0 top-left corners (x, y) of the patches.

    Returns:
        int32 (tiles,), in row-major order.
    """
    corners = footprint.corners(coords)
    side = np.array([tiles.tile_width, tiles.tile_height])
    most = np.array([tiles.across, tiles.down])
    first = np.clip(corners // side, 0, most)  # (n, 2): columns and rows
    after = np.clip(-(-(corners + footprint.side_px) // side), 0, most)
    shape = (tiles.down + 1, tiles.across + 1)
    uses = np.zeros(shape, np.int64)
    inside = (first < after).all(axis=1) & (corners < (tiles.width, tiles.height)).all(axis=1)
    (left, upper), (right, lower) = first[inside].T, after[inside].T
    for rows, columns, sign in ((upper, left, 1), (upper, right, -1), (lower, left, -1), (lower, right, 1)):
        corners_at = np.bincount(rows * shape[1] + columns, minlength=uses.size)
        uses += sign * corners_at.reshape(shape)  # (tiles,) -> (down + 1, across + 1)
    # The cumulative sums along both axes turn the marks at a rectangle's four corners into ones inside it.
    return uses.cumsum(0).cumsum(1)[:-1, :-1].astype(np.int32).ravel()  # (down, across) -> (tiles,)


class TilePatchReader:
    """Reads patches from encoded tiles, for one thread.

    Args:
        tiles: the encoded tiles of the level.
        cache: the decoded tiles of the stage, shared by all threads.
        geometry: geometry of the stage.
    """

    def __init__(self, tiles: EncodedTiles, cache: TileCache, geometry: StageGeometry) -> None:
        self._tiles, self._cache, self._geometry = tiles, cache, geometry
        self._footprint = footprint_of(geometry)
        self._scratch = tile_buffer((tiles.tile_height, tiles.tile_width, 3))
        self._unfinished: list[int] = []

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches into an array.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y), all of them among those passed to the factory.
            out: uint8 (n, patch_px, patch_px, 3), RGB, contiguous; overwritten.

        Raises:
            SlideFailed: a tile is damaged (code ``unreadable``).
        """
        corners = self._footprint.corners(coords)
        if self.can_read_by_tile(corners):
            shrink = self._footprint.shrink
            uses = self._tiles.start(corners, out, shrink=shrink)
            self._fill(corners, out, uses, shrink=shrink, bypass_cache=True)  # steps 2 and 4
            return
        for row, (x, y) in enumerate(coords.tolist()):
            out[row] = read_patch(self, self._geometry, x, y)  # step 3
            self._cache.finish_uses(self._unfinished)

    def can_read_by_tile(self, corners: NDArray[np.int64]) -> bool:
        """Return whether each tile's part of the patches can be computed from this tile alone (step 2).

        This is the case if patches are not resampled and none of the squares that are averaged lies in two tiles.

        Args:
            corners: int64 (n, 2), top-left corners (x, y) of the patches in pixels of the level.
        """
        shrink = self._footprint.shrink
        if self._footprint.resized or shrink > MAX_REDUCTION:
            return False
        return not (self._tiles.tile_width % shrink or self._tiles.tile_height % shrink or (corners % shrink).any())

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Assemble a rectangle of the level from tiles: uint8 (height, width, 3).

        A patch may be read in several bands. Its use of a tile ends with the band that contains the tile's lower edge.
        Uses of tiles that reach below the last band end after the patch has been read.
        """
        assert level == self._geometry.level
        region = tile_buffer((height, width, 3))
        corners, patches = np.array([[x, y]], np.int64), region[np.newaxis]
        touched = self._tiles.start(corners, patches, shrink=1)
        ended_rows = self._tiles.down if y + height >= self._tiles.height else (y + height) // self._tiles.tile_height
        uses = {tile: int(tile // self._tiles.across < ended_rows) for tile in touched}
        self._unfinished = [tile for tile, ended in uses.items() if not ended]
        self._fill(corners, patches, uses, shrink=1, bypass_cache=False)
        return region

    def close(self) -> None:
        """Do nothing: the tiles and the cache are shared by all threads."""

    def _fill(
        self,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        uses: dict[int, int],
        *,
        shrink: int,
        bypass_cache: bool,
    ) -> None:
        """Fill patches from tiles. ``uses`` gives each tile's number of uses that end; it is emptied."""
        tiles, cache = self._tiles, self._cache
        while uses:
            acquired = cache.acquire(uses)
            try:
                tiles.read(acquired, corners, patches, self._scratch, shrink=shrink, bypass_cache=bypass_cache)
            except BaseException:
                cache.release_undecoded(acquired)
                raise
            cache.release(acquired, uses)
