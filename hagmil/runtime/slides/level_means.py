"""A whole level at low resolution: means of squares of its pixels.

1. The level is read block by block. Memory holds one block and the means, whatever the size of the slide.
2. Blocks consist of whole tiles if possible, so that each tile is decoded once. Encoded tiles are decoded directly into
   the block, which is faster than the slide's reader.
3. The squares of each block are averaged. Blocks contain whole squares, except at the right and lower edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.memory.buffers import tile_buffer
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tiles.kernel import MAX_REDUCTION, reduce_pixels
from hagmil.runtime.tiles.protocol import AcquiredTiles, EncodedTiles
from hagmil.units import Level

BLOCK_PX = 2048
"""Largest side of the blocks, in pixels of the level: 12 MB each."""

_MAX_SUMMED_PX = 257
"""Number of pixels whose sum always fits into 16 bits."""

_ReadBlock = Callable[[int, int, int, int], NDArray[np.uint8]]
"""Reads left, top, width and height of a level: uint8 (height, width, 3), valid until the next call."""


def read_means(slide: Slide, level: Level, groups_px: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Read a whole level and average squares of its pixels.

    Args:
        slide: an open slide.
        level: the level to read.
        groups_px: side of the squares in pixels; the level is read once for all of them. Their least common multiple
            must be small, since it is the smallest side of a block.

    Returns:
        For each side, uint8 (ceil(height / side), ceil(width / side), 3); see :func:`average_blocks`.

    Raises:
        SlideFailed: the slide cannot be read.
    """
    averaged = [np.empty((-(-level.height // side), -(-level.width // side), 3), np.uint8) for side in groups_px]
    with _blocks_of(slide, level) as (read_block, tile_width, tile_height):
        across, down = (_block_side(math.lcm(*groups_px), tile_px) for tile_px in (tile_width, tile_height))
        for top in range(0, level.height, down):
            for left in range(0, level.width, across):
                block = read_block(left, top, min(across, level.width - left), min(down, level.height - top))
                for side, pixels in zip(groups_px, averaged, strict=True):
                    part = average_blocks(block, side)
                    y, x = top // side, left // side
                    pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
    return averaged


def average_blocks(rgb: NDArray[np.uint8], group_px: int) -> NDArray[np.uint8]:
    """Average each square of pixels into one pixel, rounding half up.

    Squares that reach beyond the right or lower edge are averaged over their part inside.

    Args:
        rgb: uint8 (height, width, 3).
        group_px: side of the squares in pixels.

    Returns:
        uint8 (ceil(height / group_px), ceil(width / group_px), 3).
    """
    if group_px == 1:
        return rgb
    height, width, _ = rgb.shape
    down, across = height // group_px, width // group_px  # whole squares
    if group_px & (group_px - 1) or group_px > MAX_REDUCTION or not (down and across):
        return _exact_means(rgb, group_px)
    means = np.empty((-(-height // group_px), -(-width // group_px), 3), np.uint8)
    whole = np.empty((down, across, 3), np.uint8)
    reduce_pixels(rgb[: down * group_px, : across * group_px], group_px, whole)  # exact for powers of two
    means[:down, :across] = whole
    if across < means.shape[1]:
        means[:, across:] = _exact_means(rgb[:, across * group_px :], group_px)
    if down < means.shape[0]:
        means[down:, :across] = _exact_means(rgb[down * group_px :, : across * group_px], group_px)
    return means


def _exact_means(rgb: NDArray[np.uint8], group_px: int) -> NDArray[np.uint8]:
    """See :func:`average_blocks`, of which this is the plain implementation."""
    height, width, _ = rgb.shape
    rows, columns = np.arange(0, height, group_px), np.arange(0, width, group_px)
    count = np.outer(np.diff(rows, append=height), np.diff(columns, append=width)).astype(np.uint32)
    means = ((_sums_of_squares(rgb, group_px) + count // 2) // count).astype(np.uint8)  # (3, rows, columns)
    return np.ascontiguousarray(np.moveaxis(means, 0, 2))


def _sums_of_squares(rgb: NDArray[np.uint8], group_px: int) -> NDArray[np.uint32]:
    """Add up each square of pixels, one colour at a time: uint32 (3, rows, columns)."""
    height, width, _ = rgb.shape
    narrow = np.uint16 if group_px <= _MAX_SUMMED_PX else np.uint32
    tall = np.zeros((-(-height // group_px), width, 3), narrow)
    for offset in range(min(group_px, height)):
        line = rgb[offset::group_px]
        tall[: line.shape[0]] += line
    planes = np.ascontiguousarray(np.moveaxis(tall, 2, 0))
    total = np.zeros((3, tall.shape[0], -(-width // group_px)), np.uint32)
    for offset in range(min(group_px, width)):
        part = planes[:, :, offset::group_px]
        total[:, :, : part.shape[2]] += part
    return total


def _block_side(multiple_px: int, tile_px: int) -> int:
    """The largest side of a block that is a multiple of ``multiple_px`` and, if possible, of the side of a tile."""
    both = math.lcm(multiple_px, tile_px)
    unit = both if both <= BLOCK_PX else multiple_px
    return max(1, BLOCK_PX // unit) * unit


@contextmanager
def _blocks_of(slide: Slide, level: Level) -> Iterator[tuple[_ReadBlock, int, int]]:
    """Yield a function that reads blocks of a level, and width and height of its tiles, 1 if they do not matter."""
    tiles = slide.encoded_tiles(level.index)
    if tiles is None:
        yield partial(slide.read_region, level.index), 1, 1
        return
    with closing(tiles):
        yield _TileBlocks(tiles).read, tiles.tile_width, tiles.tile_height


class _TileBlocks:
    """Reads blocks from encoded tiles, which is faster than the slide's reader.

    Args:
        tiles: the encoded tiles of the level.
    """

    def __init__(self, tiles: EncodedTiles) -> None:
        self._tiles = tiles
        self._scratch = tile_buffer((tiles.tile_height, tiles.tile_width, 3))
        self._block = np.empty(0, np.uint8)

    def read(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """See ``_ReadBlock``."""
        count = height * width * 3
        if count > len(self._block):
            self._block = np.empty(count, np.uint8)
        blocks = self._block[:count].reshape(1, height, width, 3)
        corners = np.array([[left, top]], np.int64)
        touched = list(self._tiles.start(corners, blocks, shrink=1))
        acquired = AcquiredTiles(touched, [None] * len(touched), decoded=0)
        self._tiles.read(acquired, corners, blocks, self._scratch, shrink=1, bypass_cache=False)
        block: NDArray[np.uint8] = blocks[0]
        return block
