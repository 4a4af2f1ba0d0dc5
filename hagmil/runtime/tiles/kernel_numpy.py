"""The plain twin of the compiled tile kernel: simplejpeg decodes, NumPy copies, Pillow reduces and resamples.

Same pixels and same errors as ``_tile_kernel.c`` by way of ``tile_kernel.py``; one contract test holds both.
"""

from __future__ import annotations

import os

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.pixels import WHITE

START, END = b"\xff\xd8", b"\xff\xd9"
"""Of a JPEG stream."""
_THREE_CHANNELS = ("RGB", "YCbCr")

_Piece = tuple[NDArray[np.uint8], tuple[slice, slice]]  # where to, and which rows and columns of the tile


def start_patches(
    level: tuple[int, int],
    tile: tuple[int, int],
    corners: NDArray[np.int64],
    shrink: int,
    patches: NDArray[np.uint8],
    /,
) -> dict[int, int]:
    """Whiten patches that reach beyond the level, and say which tiles patches need.

    Args:
        level: width and height of the level, in pixels.
        tile: width and height of a tile, in pixels.
        corners: int64 (n, 2), upper left corners (x, y) of the patches in the level's pixels; they may lie outside.
        shrink: pixels of the level, each way, that make one of a patch.
        patches: uint8 (n, height, width, 3), contiguous.

    Returns:
        Tiles, counted row after row, in the order of patches, and how many patches touch each.
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
    memories: list[NDArray[np.uint8] | None],
    decoded: int,
    corners: NDArray[np.int64],
    shrink: int,
    patches: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
    bypass_cache: bool,  # noqa: ARG001 - NumPy cannot
    /,
) -> None:
    """Read, decode and hand out tiles to the patches that they cover; nothing else of the patches is written.

    What of a tile lies beyond the level is white in its memory.

    Args:
        descriptor: of the file.
        head: a JPEG stream without an image, of what stands before each tile's own markers.
        offsets: int64 (tiles of the level,), where each encoded tile lies in the file.
        sizes: int64 (tiles of the level,), bytes of each.
        level: width and height of the level, in pixels.
        tile: width and height of a tile, in pixels.
        indices: which tiles, counted row after row, each once.
        memories: uint8 (tile_height, tile_width, 3), contiguous, that hold each of them; None where nothing is to be
            kept of a tile.
        decoded: how many of them, from the first, are in their memory already. The others are decoded to there.
        corners: int64 (n, 2), upper left corners (x, y) of the patches in the level's pixels; they may lie outside.
            Whole numbers of ``shrink``, as the sides of tiles are.
        shrink: a pixel of a patch is the mean of so many of the level's each way, 1 to 256; beyond the level these are
            white.
        patches: uint8 (n, height, width, 3), contiguous.
        scratch: uint8 (tile_height, tile_width, 3), for tiles of which nothing is to be kept; overwritten.
        bypass_cache: whether patches are so many that they had better not pass through the processor's cache.

    Raises:
        ValueError: a tile is damaged, or cannot be read; the index of the first such, and what is wrong with it.
    """
    assert not (corners % shrink).any()
    assert not any(side % shrink for side in tile)
    starts: list[list[int]] = corners.tolist()
    for number, (index, memory) in enumerate(zip(indices, memories, strict=True)):
        pieces = _pieces(index, level, tile, starts, shrink, patches)
        pixels = scratch if memory is None else memory
        if memory is None and len(pieces) == 1 and _takes_whole(pieces[0][0], scratch):
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
    """Means of squares of pixels, rounded as Pillow rounds them.

    Args:
        pixels: uint8 (height * factor, width * factor, 3).
        factor: side of a square, 1 to 256.
        means: uint8 (height, width, 3), contiguous; overwritten.
    """
    means[...] = _reduced(pixels, factor)


def resample_pixels(
    pixels: NDArray[np.uint8], box: tuple[float, float, float, float], out: NDArray[np.uint8], /
) -> None:
    """Resample a square of a picture by Pillow's antialiasing linear filter.

    Args:
        pixels: uint8 (side, side, 3).
        box: left, upper, right and lower edge of the square, in pixels and within them; fractions count.
        out: uint8 (patch_px, patch_px, 3), contiguous; overwritten.
    """
    out[...] = np.asarray(Image.fromarray(pixels).resize((len(out), len(out)), Image.Resampling.BILINEAR, box=box))


def _reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(factor))


def _corner(index: int, level: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """Where a tile begins, in the level's pixels: x, y."""
    row, column = divmod(index, -(-level[0] // tile[0]))
    return column * tile[0], row * tile[1]


def _whiten_beyond(index: int, level: tuple[int, int], tile: tuple[int, int], pixels: NDArray[np.uint8]) -> None:
    """Whiten what of a tile lies beyond the level: squares that are there in part have white in their means."""
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
    """Which parts of a tile go where; squares that are there in part belong to the level."""
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
    """Whether a tile can be decoded right where it goes."""
    return place.shape == tile.shape and place.flags.c_contiguous


def _decode(descriptor: int, head: bytes, offset: int, size: int, out: NDArray[np.uint8]) -> None:
    """Decode one tile; raises ValueError or OSError."""
    data = os.pread(descriptor, size, offset)
    if len(data) < size or not data.startswith(START):
        raise ValueError("its bytes are no JPEG stream")
    stream = head[: -len(END)] + data[len(START) :]
    height, width, colours, _ = simplejpeg.decode_jpeg_header(stream)
    if (height, width) != out.shape[:2]:
        raise ValueError(f"it holds {width} x {height} px")
    if colours not in _THREE_CHANNELS:
        raise ValueError("it does not hold three channels")
    simplejpeg.decode_jpeg(stream, "RGB", buffer=out)
