"""The encoded JPEG tiles of one level of a TIFF file, each decoded by itself, by libjpeg-turbo.

What is given to the decoder beside a tile's own bytes, as a JPEG stream without an image, the head of all tiles:

1. An Adobe marker that says whether the three channels are YCbCr or RGB, as the TIFF tags say it. Many files
   leave that to the tags, and a decoder would take them for YCbCr. What a tile itself says comes first.
2. The tables that all tiles of the level share, where they do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, one_line
from hagmil.runtime.tiles.kernel import read_tiles, start_patches
from hagmil.runtime.tiles.kernel_numpy import END, START
from hagmil.runtime.tiles.protocol import AcquiredTiles, Tile
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, TiffError, read_tile_index

_JPEG, _SIDE_BY_SIDE = 7, 1
_RGB, _YCBCR = 2, 6
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # and one byte: 0 for RGB, 1 for YCbCr


def holds_jpeg_tiles(directory: TiffDirectory) -> bool:
    """Whether an image is stored in JPEG tiles of three channels of 8 bits, none of them missing."""
    return (
        directory.tiled
        and directory.compression == _JPEG
        and directory.photometric in (_RGB, _YCBCR)
        and directory.bits == (8, 8, 8)
        and directory.planar == _SIDE_BY_SIDE
        and not directory.missing_tiles
    )


class JpegTiles:
    """Tiles of one level; several threads may read at once.

    Args:
        path: the file.
        level: index of the level, for messages.
        directory: the level's image; see ``holds_jpeg_tiles``.

    Raises:
        SlideFailed: the tags do not say where the tiles lie, or the file is gone (code ``unreadable``).
    """

    def __init__(self, path: Path, level: int, directory: TiffDirectory) -> None:
        assert directory.tile_width is not None
        assert directory.tile_height is not None
        self.width, self.height = directory.width, directory.height
        self.tile_width, self.tile_height = directory.tile_width, directory.tile_height
        self.across, self.down = -(-self.width // self.tile_width), -(-self.height // self.tile_height)
        self._path, self._level = path, level
        try:
            index = read_tile_index(path, directory)
            self._file = path.open("rb", buffering=0)
        except (TiffError, OSError) as error:
            raise SlideFailed(
                f'slide "{path.name}" cannot be read at level {level}: {error}', code="unreadable"
            ) from error
        self._descriptor = self._file.fileno()
        self._index = index
        colours = bytes([directory.photometric == _YCBCR])
        self._head = START + _ADOBE + colours + index.jpeg_tables[len(START) : -len(END)] + END

    def start(self, corners: NDArray[np.int64], patches: NDArray[np.uint8], *, shrink: int) -> dict[int, int]:
        """See ``EncodedTiles.start``."""
        return start_patches((self.width, self.height), (self.tile_width, self.tile_height), corners, shrink, patches)

    def read(
        self,
        acquired: AcquiredTiles,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        scratch: Tile,
        *,
        shrink: int,
        bypass_cache: bool,
    ) -> None:
        """See ``EncodedTiles.read``."""
        try:
            read_tiles(
                self._descriptor,
                self._head,
                self._index.offsets,
                self._index.sizes,
                (self.width, self.height),
                (self.tile_width, self.tile_height),
                acquired.indices,
                acquired.buffers,
                acquired.decoded,
                corners,
                shrink,
                patches,
                scratch,
                bypass_cache,
            )
        except ValueError as error:
            tile, problem = error.args
            row, column = divmod(tile, self.across)
            raise SlideFailed(
                f'slide "{self._path.name}" cannot be decoded at level {self._level}, '
                f"x {column * self.tile_width}, y {row * self.tile_height}, "
                f"{self.tile_width} x {self.tile_height} px: {one_line(problem)}; "
                "the file is damaged, copy or scan it again",
                code="unreadable",
            ) from error

    def close(self) -> None:
        """See ``EncodedTiles.close``."""
        self._file.close()
