"""NumPy equivalent of the compiled tile kernel: simplejpeg decodes, NumPy copies, Pillow reduces and resamples.

It gives the same pixels and errors as ``_tile_kernel.c`` (used through ``kernel.py``); one contract test covers both.
"""

from __future__ import annotations

import os

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.pixels import WHITE
from hagmil.runtime.tiles.jpeg_colours import CONTRADICTION, contradicts, stream_colours

START, END = b"\xff\xd8", b"\xff\xd9"
"""First and last marker of a JPEG stream."""
_THREE_CHANNELS = ("RGB", "YCbCr")

_Piece = tuple[NDArray[np.uint8], tuple[slice, slice]]  # destination; rows and columns of the tile


def start_patches(
    level: tuple[int, int],
    tile: tuple[int, int],
    corners: NDArray[np.int64],
    shrink: int,
    patches: NDArray[np.uint8],
    /,
) -> dict[int, int]:
    """Fill patches that extend beyond the level with white, and count the patches that touch each tile.

    Args:
        level: width and height of the level in pixels.
        tile: width and height of a tile in pixels.
        corners: int64 (n, 2), top-left corners (x, y) of the patches in pixels of the level; they may lie outside.
        shrink: pixels of the level, along each axis, that become one pixel of a patch.
        patches: uint8 (n, height, width, 3), contiguous.

    Returns:
        The tiles that the patches need, in the order of the patches: tile index (row by row) to number of patches.
    """
    counts: dict[int, int] = {}
    (level_width, level_height), (tile_width, tile_height) = level, tile
    height, width = (side * shrink for side in patches.shape[1:3])
    across = -(-level_width // tile_width)
    for patch, (x, y) in zip(patches, corners.tolist(), strict=True):
        left, right = max(x, 0), min(x + width, level_width)
        upper, lower = max(y, 0), min(y + height, level_height)
        if right - left < width or lower - upper < height:
            patch.fill(WHITE)
        if left < right and upper < lower:
            for row in range(upper // tile_height, -(-lower // tile_height)):
                for index in range(row * across + left // tile_width, row * across - (-right // tile_width)):
                    counts[index] = counts.get(index, 0) + 1
    return counts


def read_tiles(
    descriptor: int,
    head: bytes,
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    level: tuple[int, int],
    tile: tuple[int, int],
    indices: list[int],
    buffers: list[NDArray[np.uint8] | None],
    decoded: int,
    corners: NDArray[np.int64],
    shrink: int,
    patches: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
    bypass_cache: bool,  # noqa: ARG001 - not possible in NumPy
    /,
) -> None:
    """Read and decode tiles, and write the pixels that they cover to the patches; no other pixels are written.

    The part of a tile beyond the level is white in its buffer.

    Args:
        descriptor: file descriptor.
        head: JPEG stream without an image: the tables and markers that precede the markers of each tile.
        offsets: int64 (tiles of the level,), position of each encoded tile in the file.
        sizes: int64 (tiles of the level,), size of each encoded tile in bytes.
        level: width and height of the level in pixels.
        tile: width and height of a tile in pixels.
        indices: the tiles to use, numbered row by row, without repeats.
        buffers: a buffer for each of them, uint8 (tile_height, tile_width, 3), contiguous; None if the decoded tile is
            not kept.
        decoded: number of tiles at the start of ``indices`` whose buffers contain the decoded tile already.
        corners: int64 (n, 2), top-left corners (x, y) of the patches in pixels of the level; they may lie outside.
            Corners and tile sides are multiples of ``shrink``.
        shrink: pixels of the level, along each axis, whose mean is one pixel of a patch: 1 to 256. Pixels beyond the
            level count as white.
        patches: uint8 (n, height, width, 3), contiguous.
        scratch: uint8 (tile_height, tile_width, 3), buffer for tiles that are not kept; overwritten.
        bypass_cache: whether to write patches past the processor's cache (compiled kernel only).

    Raises:
        ValueError: a tile is damaged or cannot be read; the arguments are the index of the first such tile and the
            reason.
    """
    assert not (corners % shrink).any()
    assert not any(side % shrink for side in tile)
    starts: list[list[int]] = corners.tolist()
    for number, (index, buffer) in enumerate(zip(indices, buffers, strict=True)):
        pieces = _pieces(index, level, tile, starts, shrink, patches)
        pixels = scratch if buffer is None else buffer
        if buffer is None and len(pieces) == 1 and _takes_whole(pieces[0][0], scratch):
            pixels = pieces[0][0]
        if number >= decoded:
            try:
                _decode(descriptor, head, int(offsets[index]), int(sizes[index]), pixels)
            except (ValueError, OSError) as error:
                raise ValueError(index, str(error)) from error
            _whiten_beyond(index, level, tile, pixels)
        for place, part in pieces:
            if shrink > 1:
                place[...] = _reduced(pixels[part], shrink)
            elif place is not pixels:
                place[...] = pixels[part]


def reduce_pixels(pixels: NDArray[np.uint8], factor: int, means: NDArray[np.uint8], /) -> None:
    """Compute means of squares of pixels, rounded as in Pillow's ``Image.reduce``.

    Args:
        pixels: uint8 (height * factor, width * factor, 3).
        factor: side of the squares, 1 to 256.
        means: uint8 (height, width, 3), contiguous; overwritten.
    """
    means[...] = _reduced(pixels, factor)


def resample_pixels(
    pixels: NDArray[np.uint8], box: tuple[float, float, float, float], out: NDArray[np.uint8], /
) -> None:
    """Resample a square of an image with Pillow's antialiasing linear filter.

    Args:
        pixels: uint8 (side, side, 3).
        box: left, upper, right and lower edge of the square in pixels, fractions included, within the image.
        out: uint8 (patch_px, patch_px, 3), contiguous; overwritten.
    """
    out[...] = np.asarray(Image.fromarray(pixels).resize((len(out), len(out)), Image.Resampling.BILINEAR, box=box))


def _reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(factor))


def _corner(index: int, level: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """Top-left corner (x, y) of a tile in pixels of the level."""
    row, column = divmod(index, -(-level[0] // tile[0]))
    return column * tile[0], row * tile[1]


def _whiten_beyond(index: int, level: tuple[int, int], tile: tuple[int, int], pixels: NDArray[np.uint8]) -> None:
    """Fill the part of a tile beyond the level with white, which counts in the means of squares at the edge."""
    left, upper = _corner(index, level, tile)
    pixels[level[1] - upper :] = WHITE
    pixels[:, level[0] - left :] = WHITE


def _pieces(
    index: int,
    level: tuple[int, int],
    tile: tuple[int, int],
    starts: list[list[int]],
    shrink: int,
    patches: NDArray[np.uint8],
) -> list[_Piece]:
    """Find the parts of a tile that patches need, including squares that lie partly beyond the level."""
    left, upper = _corner(index, level, tile)
    right, lower = (
        min(begin + side, -(-end // shrink) * shrink)
        for begin, side, end in zip((left, upper), tile, level, strict=True)
    )
    pieces = []
    for patch, (x, y) in zip(patches, starts, strict=True):
        begin_x, end_x = max(left, x), min(right, x + patch.shape[1] * shrink)
        begin_y, end_y = max(upper, y), min(lower, y + patch.shape[0] * shrink)
        if begin_x < end_x and begin_y < end_y:
            rows = slice((begin_y - y) // shrink, (end_y - y) // shrink)
            place = patch[rows, (begin_x - x) // shrink : (end_x - x) // shrink]
            pieces.append((place, (slice(begin_y - upper, end_y - upper), slice(begin_x - left, end_x - left))))
    return pieces


def _takes_whole(place: NDArray[np.uint8], tile: NDArray[np.uint8]) -> bool:
    """Whether a tile can be decoded directly into its destination."""
    return place.shape == tile.shape and place.flags.c_contiguous


def _decode(descriptor: int, head: bytes, offset: int, size: int, out: NDArray[np.uint8]) -> None:
    """Decode one tile; raise ValueError or OSError if that fails."""
    data = os.pread(descriptor, size, offset)
    if len(data) < size or not data.startswith(START):
        raise ValueError("not a JPEG stream")
    stream = head[: -len(END)] + data[len(START) :]
    height, width, colours, _ = simplejpeg.decode_jpeg_header(stream)
    if (height, width) != out.shape[:2]:
        raise ValueError(f"the JPEG image is {width} x {height} px")
    if colours not in _THREE_CHANNELS:
        raise ValueError("the JPEG image does not have three channels")
    if contradicts(data, ycbcr="YCbCr" in stream_colours(head)):
        raise ValueError(CONTRADICTION)
    simplejpeg.decode_jpeg(stream, "RGB", buffer=out)
