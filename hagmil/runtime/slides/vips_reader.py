"""Reader for tiled TIFF pyramids, including Aperio files, based on libvips.

Properties of libvips, measured with version 8.18, and how this reader handles them:

1. The operation cache returns one image to all threads that open the same page, and these threads then wait for one
   another. The cache is disabled for the whole process, and each fork opens images of its own.
2. A page caches about three rows of decoded tiles across its whole width: 400 MB and more on a wide slide, per thread.
   The page is reopened when the tiles read from it exceed a budget. A page also keeps memory for the largest rectangle
   read so far; it is reopened after reads of 4 MB and more.
3. A truncated JPEG tile is decoded to grey without an error, whatever the value of ``fail_on``; only the error buffer
   of the process receives a warning. A read that finds text in this buffer is repeated on a reopened page while no
   other thread decodes, and fails if the text appears again.
4. A tile that has failed once is returned as black the next time. The page is reopened after every failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, SlideRejected, one_line
from hagmil.runtime.pixels import over_white
from hagmil.runtime.slides.slide import Slide, SlideMetadata
from hagmil.runtime.slides.spacing import Spacing, resolve_spacing
from hagmil.runtime.slides.tiff_pyramid import read_metadata
from hagmil.runtime.slides.vips_errors import decode_lock, error_buffer, fetch_region
from hagmil.runtime.tiles.jpeg import JpegTiles, holds_jpeg_tiles
from hagmil.runtime.tiles.tiff_tags import TiffDirectory

_CACHE_BYTES = 16 << 20
_CACHE_TILES = 16
_LARGE_READ_BYTES = 4 << 20
_ROWS_CACHED_BY_VIPS = 4
_LARGEST_STRIPPED_BYTES = 256 << 20
_JPEG = 7
_CONVERT = "convert it: vips tiffsave IN OUT --tile --pyramid --compression jpeg --bigtiff"

pyvips.cache_set_max(0)  # point 1


class _Page:
    """One level. It is opened at the first read, and reopened when its tile cache exceeds the budget."""

    def __init__(self, path: Path, directory: TiffDirectory) -> None:
        self._path = path
        self._directory = directory
        self._region: pyvips.Region | None = None
        self._tiles: set[int] = set()
        self._tile_width = directory.tile_width or directory.width
        self._tile_height = directory.tile_height or directory.height
        self._tiles_across = -(-directory.width // self._tile_width)
        tile_bytes = self._tile_width * self._tile_height * directory.samples
        self._budget_tiles = max(_CACHE_BYTES // tile_bytes, _CACHE_TILES)

    def fetch(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle inside the page: uint8 (height, width, channels).

        Raises:
            pyvips.Error: a tile cannot be decoded.
        """
        before = error_buffer.taken
        with decode_lock.shared():
            pixels = self._decode(x, y, width, height)
            error_buffer.take()  # before releasing the lock: an exclusive thread must find only its own text
        if error_buffer.taken != before:  # point 3: this thread's text or another's
            self.drop()  # a cached tile gives no second warning
            with decode_lock.exclusive():
                error_buffer.take()
                pixels = self._decode(x, y, width, height)
                warning = error_buffer.take()
            if warning:
                self.drop()
                raise pyvips.Error("damaged tile", warning)
        if pixels.nbytes >= _LARGE_READ_BYTES:
            self.drop()
        else:
            self._count_tiles(x, y, width, height)
        return pixels

    def _decode(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        try:
            if self._region is None:
                self._region = pyvips.Region.new(open_page(self._path, self._directory))
            pixels = fetch_region(self._region, x, y, width, height)
        except pyvips.Error:
            self.drop()  # point 4
            raise
        return np.frombuffer(pixels, np.uint8).reshape(height, width, -1)  # (height, width, channels)

    def drop(self) -> None:
        """Close the page and free its tiles. The next read opens it again."""
        self._region = None
        self._tiles.clear()

    def _count_tiles(self, x: int, y: int, width: int, height: int) -> None:
        """Count the tiles read so far, and drop the page if they exceed the budget (point 2)."""
        if self._tiles_across * _ROWS_CACHED_BY_VIPS <= self._budget_tiles:
            return
        columns = range(x // self._tile_width, (x + width - 1) // self._tile_width + 1)
        rows = range(y // self._tile_height, (y + height - 1) // self._tile_height + 1)
        self._tiles.update(row * self._tiles_across + column for row in rows for column in columns)
        if len(self._tiles) > self._budget_tiles:
            self.drop()


class VipsReader(Slide):
    """A slide read by libvips."""

    def __init__(
        self,
        path: Path,
        metadata: SlideMetadata,
        spacing: Spacing,
        directories: tuple[TiffDirectory, ...],
        whole: NDArray[np.uint8] | None,
    ) -> None:
        super().__init__(path, metadata, spacing)
        self._directories = directories
        self._whole = whole
        self._pages = [_Page(path, directory) for directory in directories]

    @classmethod
    def open(
        cls, path: Path, directories: tuple[TiffDirectory, ...], vendor: str, spacing_um: float | None
    ) -> VipsReader:
        """Open a TIFF file.

        Args:
            path: the file.
            directories: the images that are levels, finest first.
            vendor: ``aperio`` or ``generic-tiff``.
            spacing_um: micrometres per level-0 pixel; overrides the file's.

        Raises:
            SlideFailed: libvips cannot open the file (code ``unreadable``).
            SlideRejected: the pixels are not square (code ``spacing_anisotropic``), or the image is stored in strips
                and is JPEG-compressed or too large to be decoded as a whole (``not_tiled``).
        """
        metadata = read_metadata(directories, vendor)
        spacing = resolve_spacing(path.name, metadata.spacing_xy_um, spacing_um)
        whole = None
        try:
            if directories[0].tiled:
                with decode_lock.shared():
                    open_page(path, directories[0])
            else:
                whole = _decode_whole(path, directories[0])
        except pyvips.Error as error:
            raise SlideFailed(
                f'slide "{path.name}" cannot be opened: {one_line(error.detail)}', code="unreadable"
            ) from error
        return cls(path, metadata, spacing, directories, whole)

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        if not self._pages:
            raise ValueError(f'slide "{self.path.name}" is closed')
        if self._whole is not None:
            return _as_rgb(self._whole[y : y + height, x : x + width])
        try:
            return _as_rgb(self._pages[level].fetch(x, y, width, height))
        except pyvips.Error as error:
            raise self._undecodable(level, x, y, width, height, error.detail) from error

    def encoded_tiles(self, level: int) -> JpegTiles | None:
        """Open the encoded tiles of a level if they are JPEG; others can only be decoded by libvips."""
        directory = self._directories[level]
        return JpegTiles(self.path, level, directory) if holds_jpeg_tiles(directory) else None

    def fork(self) -> VipsReader:
        """Return a reader with images of its own, for another thread."""
        if not self._pages:
            raise ValueError(f'slide "{self.path.name}" is closed')
        return VipsReader(self.path, self.metadata, self.spacing, self._directories, self._whole)

    def close(self) -> None:
        """Close the reader. Closing twice has no effect."""
        for page in self._pages:
            page.drop()
        self._pages = []
        self._whole = None


def open_page(path: Path, directory: TiffDirectory) -> pyvips.Image:
    """Open one image of a TIFF file without decoding it."""
    options = {} if directory.subifd is None else {"subifd": directory.subifd}
    try:
        return pyvips.Image.tiffload(os.fsencode(path), page=directory.page, fail_on="error", **options)
    except pyvips.Error:
        error_buffer.count_taken()
        raise


def _decode_whole(path: Path, directory: TiffDirectory) -> NDArray[np.uint8]:
    """Decode an image that is stored in strips, which libvips can only read from its start. Forks share the pixels."""
    size = directory.width * directory.height * directory.samples
    reason = ""
    if size > _LARGEST_STRIPPED_BYTES:
        reason = f"not tiled and too large to be decoded as a whole ({size >> 20} MiB)"
    if directory.compression == _JPEG:
        reason = "stored in JPEG strips, in which damage is not detected"  # libtiff only logs it
    if reason:
        raise SlideRejected(f'slide "{path.name}" is {reason}; {_CONVERT}', code="not_tiled")
    return _Page(path, directory).fetch(0, 0, directory.width, directory.height)


def _as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert grey, RGB or RGBA to RGB over white: uint8 (height, width, 3)."""
    channels = pixels.shape[2]
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels if channels == 3 else over_white(pixels)
