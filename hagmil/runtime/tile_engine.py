"""The tile engine: patches at any offset and spacing, from encoded tiles that are decoded once each.

1. A stage's patches are known before the first is read: so is how many of them touch each tile.
2. Where patches are the level's own pixels, a chunk of patches is read tile by tile: a tile is decoded, and each of
   its parts copied to the patch that it belongs to, while the processor's cache still holds it. A tile that
   is a patch is decoded in place.
3. Where patches are resampled, the pixels that one needs are put together from tiles, and go the way of every
   other reader's pixels.
4. What lies beyond the level's edge is white; the padding of tiles there is never seen.

Tiles that further patches need are kept in a :class:`TileCache`, which all threads share.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.encoded_tiles import EncodedTiles
from hagmil.runtime.geometry import StageGeometry
from hagmil.runtime.patch_reader import Footprint, PatchReader, SlidePatchReader, footprint, read_patch
from hagmil.runtime.slide import Slide
from hagmil.runtime.slide_base import WHITE
from hagmil.runtime.tile_cache import TileCache

CACHE_BYTES = 64 << 20
"""Decoded tiles kept for further patches, all threads together."""

_Piece = tuple[NDArray[np.uint8], tuple[slice, slice]]  # where to, and which rows and columns of the tile


class PatchSource:
    """What a stage's patches are read from: the tile engine where the level has JPEG tiles, else the slide's reader.

    Use it as a context; ``reader`` makes one thread's patch reader.

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
            self.cache = TileCache(self._tiles, tile_uses(self._tiles, footprint(geometry), coords), cache_bytes)

    @property
    def decoded_tiles(self) -> int | None:
        """Tiles decoded so far, repeats counted; None where the slide's own reader decodes."""
        return None if self.cache is None else self.cache.decoded

    def reader(self, slide: Slide, geometry: StageGeometry) -> PatchReader:
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


def tile_uses(tiles: EncodedTiles, seen: Footprint, coords: NDArray[np.int64]) -> NDArray[np.int32]:
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
    uses = np.zeros((tiles.down + 1, tiles.across + 1), np.int32)
    inside = (first < after).all(axis=1)
    (left, upper), (right, lower) = first[inside].T, after[inside].T
    for rows, columns, sign in ((upper, left, 1), (upper, right, -1), (lower, left, -1), (lower, right, 1)):
        np.add.at(uses, (rows, columns), sign)  # the corners of a rectangle; summed up twice it is filled
    return (
        np.ascontiguousarray(uses.cumsum(0).cumsum(1)[:-1, :-1]).astype(np.int32).ravel()
    )  # (down, across) -> (tiles,)


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

    def read_into(self, coords: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read patches into an array.

        Args:
            coords: int64 (n, 2), level-0 top-left corners (x, y), each among those that were announced.
            out: uint8 (n, patch_px, patch_px, 3), RGB; overwritten.

        Raises:
            SlideFailed: a tile is damaged (code ``unreadable``).
        """
        if self._geometry.resample:
            for row, (x, y) in enumerate(coords.tolist()):
                out[row] = read_patch(self, self._geometry, x, y)  # step 3
                self._over(x, y)
            return
        pieces: dict[int, list[_Piece]] = {}
        for patch, (x, y) in zip(out, self._footprint.corners(coords).tolist(), strict=True):
            self._cut(pieces, patch, x, y)
        self._fill(pieces, uses=True)  # step 2

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Put a rectangle of the level together from tiles: uint8 (height, width, 3)."""
        assert level == self._geometry.level
        region = np.empty((height, width, 3), np.uint8)
        pieces: dict[int, list[_Piece]] = {}
        self._cut(pieces, region, x, y)
        self._fill(pieces, uses=False)
        return region

    def close(self) -> None:
        """The tiles belong to all threads; nothing is held here."""

    def _cut(self, pieces: dict[int, list[_Piece]], target: NDArray[np.uint8], x: int, y: int) -> None:
        """Say which part of which tile goes where in a target whose corner lies at (x, y) of the level."""
        tiles = self._tiles
        height, width = target.shape[:2]
        columns = _spans(x, width, tiles.width, tiles.tile_width)
        rows = _spans(y, height, tiles.height, tiles.tile_height)
        if min(x, y) < 0 or x + width > tiles.width or y + height > tiles.height:
            target.fill(WHITE)  # step 4
        for row, to_rows, from_rows in rows:
            for column, to_columns, from_columns in columns:
                piece = (target[to_rows, to_columns], (from_rows, from_columns))
                tile = row * tiles.across + column
                if tile in pieces:
                    pieces[tile].append(piece)
                else:
                    pieces[tile] = [piece]

    def _fill(self, pieces: dict[int, list[_Piece]], *, uses: bool) -> None:
        """Decode the tiles, one after the other, and copy their parts to where they go."""
        cache, whole = self._cache, (self._tiles.tile_height, self._tiles.tile_width, 3)
        for tile, parts in pieces.items():
            first = parts[0][0]
            if first.shape == whole and first.flags.c_contiguous and cache.alone(tile):
                cache.decode_into(tile, first)
                continue
            pixels = cache.borrow(tile)
            for place, part in parts:
                place[...] = pixels[part]
            cache.give_back(tile, len(parts) if uses else 0)

    def _over(self, x: int, y: int) -> None:
        """Count the uses of a resampled patch as over: only now, since it may have been read band by band."""
        ((left, upper),) = self._footprint.corners(np.array([[x, y]], np.int64)).tolist()
        side, tiles = self._footprint.side_px, self._tiles
        columns = _spans(left, side, tiles.width, tiles.tile_width)
        rows = _spans(upper, side, tiles.height, tiles.tile_height)
        self._cache.use_up(row * tiles.across + column for row, _, _ in rows for column, _, _ in columns)


def _spans(start: int, length: int, extent: int, tile: int) -> list[tuple[int, slice, slice]]:
    """A stretch of one axis, cut where tiles meet and where the level ends.

    Args:
        start: of the stretch, in the level's pixels; it may lie outside.
        length: of the stretch.
        extent: of the level.
        tile: side of a tile.

    Returns:
        For each tile on the way its row or column, the part of the stretch, and the part of the tile.
    """
    spans = []
    begin, end = max(start, 0), min(start + length, extent)
    while begin < end:
        index, inside = divmod(begin, tile)
        until = min(begin - inside + tile, end)
        spans.append((index, slice(begin - start, until - start), slice(inside, inside + until - begin)))
        begin = until
    return spans
