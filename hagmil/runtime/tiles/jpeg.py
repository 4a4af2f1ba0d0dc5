"""The encoded JPEG tiles of one level of a TIFF file, decoded one by one by libjpeg-turbo.

In addition to the bytes of a tile, the decoder gets a JPEG stream without an image (the head), which is the same for
all tiles of the level:

1. An Adobe marker with the colour space of the TIFF tags, YCbCr or RGB. Many files specify it only in the tags, and a
   decoder would assume YCbCr. Tiles with markers that contradict the tags are refused; see ``jpeg_colours``.
2. The tables that all tiles of the level share, if any.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, one_line
from hagmil.runtime.tiles.jpeg_colours import CONTRADICTION
from hagmil.runtime.tiles.kernel import read_tiles, start_patches
from hagmil.runtime.tiles.kernel_numpy import END, START
from hagmil.runtime.tiles.protocol import AcquiredTiles, Tile
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, TiffError, read_tile_index

_JPEG, _SIDE_BY_SIDE = 7, 1
_RGB, _YCBCR = 2, 6
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # followed by one byte: 0 for RGB, 1 for YCbCr


def holds_jpeg_tiles(directory: TiffDirectory) -> bool:
    """Return whether an image consists of JPEG tiles with three 8-bit channels, and none is missing."""
    return (
        directory.tiled
        and directory.compression == _JPEG
        and directory.photometric in (_RGB, _YCBCR)
        and directory.bits == (8, 8, 8)
        and directory.planar == _SIDE_BY_SIDE
        and not directory.missing_tiles
    )


class JpegTiles:
    """The JPEG tiles of one level; see ``EncodedTiles``.

    Args:
        path: the file.
        level: index of the level, for messages.
        directory: the image of the level; ``holds_jpeg_tiles`` is true for it.

    Raises:
        SlideFailed: the tags do not give the positions of the tiles, or the file cannot be opened (code
            ``unreadable``).
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
                + ("export it again" if problem == CONTRADICTION else "the file is damaged, copy or scan it again"),
                code="unreadable",
            ) from error

    def close(self) -> None:
        """See ``EncodedTiles.close``."""
        self._file.close()
