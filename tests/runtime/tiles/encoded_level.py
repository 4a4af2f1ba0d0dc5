"""Levels of encoded JPEG tiles in a file, and the tile kernels under test."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.tiles import kernel as tile_kernel
from hagmil.runtime.tiles import kernel_numpy
from tests.runtime.slide_files import picture

HEAD = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
END = b"\xff\xd9"
UNTOUCHED = 77
NOT_COMPILED = tile_kernel.why_not_compiled is not None

compiled_only = pytest.mark.skipif(
    NOT_COMPILED, reason=f"the tile kernel is not compiled: {tile_kernel.why_not_compiled}"
)

KERNELS = [
    pytest.param(tile_kernel, id="compiled", marks=compiled_only),
    pytest.param(kernel_numpy, id="numpy"),
]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


@dataclass
class Level:
    """Encoded tiles in a file, and their decoded pixels."""

    descriptor: int
    head: bytes
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    size: tuple[int, int]
    tile: tuple[int, int]
    pixels: NDArray[np.uint8]  # whole tiles, including the parts beyond the level
    path: Path

    @property
    def across(self) -> int:
        return -(-self.size[0] // self.tile[0])

    def tile_pixels(self, index: int) -> NDArray[np.uint8]:
        row, column = divmod(index, self.across)
        width, height = self.tile
        return self.pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]

    def read(
        self,
        kernel: Any,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        *,
        indices: list[int] | None = None,
        buffers: list[NDArray[np.uint8] | None] | None = None,
        decoded: int = 0,
        shrink: int = 1,
        bypass_cache: bool = True,
    ) -> None:
        indices = list(range(len(self.sizes))) if indices is None else indices
        buffers = [None] * len(indices) if buffers is None else buffers
        arrays = self.offsets, self.sizes, self.size, self.tile, indices, buffers, decoded, corners, shrink, patches
        kernel.read_tiles(self.descriptor, self.head, *arrays, self.buffer(), bypass_cache)

    def buffer(self) -> NDArray[np.uint8]:
        return np.full((self.tile[1], self.tile[0], 3), 3, np.uint8)

    def expected(self, corners: NDArray[np.int64], height: int, width: int) -> NDArray[np.uint8]:
        """Patches as slices of the pixels; pixels outside the level are unchanged."""
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        for patch, (x, y) in zip(patches, corners.tolist(), strict=True):
            left, upper = max(x, 0), max(y, 0)
            right, lower = min(x + width, self.size[0]), min(y + height, self.size[1])
            if left < right and upper < lower:
                patch[upper - y : lower - y, left - x : right - x] = self.pixels[upper:lower, left:right]
        return patches


def write_level(
    path: Path, size: tuple[int, int], tile: tuple[int, int], *, rgb: bool = False, **options: Any
) -> Level:
    """Write JPEG tiles, encoded by Pillow, as in a TIFF file."""
    across, down = -(-size[0] // tile[0]), -(-size[1] // tile[1])
    whole = picture(across * tile[0], down * tile[1])
    pixels, body, offsets, sizes = np.empty_like(whole), bytearray(b"II*\0"), [], []
    for row in range(0, len(whole), tile[1]):
        for column in range(0, whole.shape[1], tile[0]):
            part = slice(row, row + tile[1]), slice(column, column + tile[0])
            data = encoded(whole[part], keep_rgb=rgb, **options)
            pixels[part] = np.asarray(Image.open(io.BytesIO(data)))
            offsets.append(len(body))
            sizes.append(len(data))
            body += data
    path.write_bytes(body)
    places = np.array(offsets, np.int64), np.array(sizes, np.int64)
    head = HEAD + (b"\x00" if rgb else b"\x01") + END
    return Level(os.open(path, os.O_RDONLY), head, *places, size, tile, pixels, path)


def encoded(pixels: NDArray[np.uint8], *, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=85, **options)
    return stream.getvalue()


def damage(level: Level, data: bytes, tile: int = 5) -> None:
    """Replace the bytes of a tile."""
    level.offsets[tile], level.sizes[tile] = level.path.stat().st_size, len(data)
    with level.path.open("ab") as file:
        file.write(data)


def stream_of(level: Level, tile: int = 5) -> bytes:
    start = int(level.offsets[tile])
    return level.path.read_bytes()[start : start + int(level.sizes[tile])]


PIXELS = picture(64, 64)
