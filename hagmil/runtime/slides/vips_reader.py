"""Slides through libvips: tiled TIFF pyramids, Aperio among them, read page by page.

How libvips is held to what a slide reader owes, each point measured with libvips 8.18:

1. Its operation cache hands one image to every thread that opens the same page, and threads then wait for one
   another. It is turned off, for the whole process; each fork opens its own images.
2. A page caches decoded tiles, about three rows of them across the whole width: 400 MB and more on a wide
   slide, for each thread. A page is opened anew when the tiles that it was asked for exceed a budget. Beside them it
   keeps memory for the largest rectangle that it was asked for: after one of 4 MB and more it is opened anew, too.
3. A JPEG tile that ends early comes out grey, without an error, whatever ``fail_on`` says; only libvips's
   error buffer, one for the process, gets a warning. A read that finds text there is done again on a page
   opened anew, while no other thread decodes, and fails when the text comes back.
4. A tile that failed once comes out black the second time. A page is opened anew after every failure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, SlideRejected, one_line
from hagmil.runtime.pixels import over_white
from hagmil.runtime.slides.slide import Slide, SlideMetadata
from hagmil.runtime.slides.spacing import Spacing, resolve_spacing
from hagmil.runtime.slides.tiff_pyramid import read_metadata
from hagmil.runtime.slides.vips_errors import errors, fetch_region, gate
from hagmil.runtime.tiles.jpeg import JpegTiles, holds_jpeg_tiles
from hagmil.runtime.tiles.tiff_tags import TiffDirectory

_CACHE_BYTES = 16 << 20
_CACHE_TILES = 16
_LARGE_READ_BYTES = 4 << 20
_CACHED_ROWS = 4
_LARGEST_STRIPPED_BYTES = 256 << 20
_JPEG = 7
_CONVERT = "convert it: vips tiffsave IN OUT --tile --pyramid --compression jpeg --bigtiff"

pyvips.cache_set_max(0)  # point 1


class _Page:
    """One level, opened when it is first read, and anew whenever its tile cache has outgrown the budget."""

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
        """Pixels of a rectangle inside the page: uint8 (height, width, channels).

        Raises:
            pyvips.Error: a tile in it cannot be decoded.
        """
        before = errors.disturbances
        with gate.shared():
            pixels = self._decode(x, y, width, height)
            errors.take()  # inside the gate: who decodes alone must find what is his
        if errors.disturbances != before:  # point 3: perhaps ours, perhaps another thread's
            self.drop()  # a cached tile would not warn again
            with gate.alone():
                errors.take()
                pixels = self._decode(x, y, width, height)
                warning = errors.take()
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
        """Close the page and free its tiles; the next read opens it again."""
        self._region = None
        self._tiles.clear()

    def _count_tiles(self, x: int, y: int, width: int, height: int) -> None:
        """Point 2."""
        if self._tiles_across * _CACHED_ROWS <= self._budget_tiles:
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
        """Open a TIFF file whose levels are known.

        Args:
            path: the file.
            directories: the images that are its levels, finest first.
            vendor: ``aperio`` or ``generic-tiff``.
            spacing_um: micrometres per level-0 pixel that overrides the file's.

        Raises:
            SlideFailed: libvips cannot open it (code ``unreadable``).
            SlideRejected: its pixels are not square (code ``spacing_anisotropic``), or it is stored in strips
                and too large to be decoded whole (code ``not_tiled``).
        """
        metadata = read_metadata(directories, vendor)
        spacing = resolve_spacing(path.name, metadata.spacing_xy_um, spacing_um)
        whole = None
        try:
            if directories[0].tiled:
                with gate.shared():
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
        """The level's tiles where they are JPEG; for others libvips's own decoder is the only one."""
        directory = self._directories[level]
        return JpegTiles(self.path, level, directory) if holds_jpeg_tiles(directory) else None

    def fork(self) -> VipsReader:
        """A reader with images of its own, for another thread."""
        if not self._pages:
            raise ValueError(f'slide "{self.path.name}" is closed')
        return VipsReader(self.path, self.metadata, self.spacing, self._directories, self._whole)

    def close(self) -> None:
        """Let go of the file; closing twice does nothing."""
        for page in self._pages:
            page.drop()
        self._pages = []
        self._whole = None


def open_page(path: Path, directory: TiffDirectory) -> pyvips.Image:
    """One image of a TIFF file, nothing of it decoded yet."""
    options = {} if directory.subifd is None else {"subifd": directory.subifd}
    try:
        return pyvips.Image.tiffload(str(path), page=directory.page, fail_on="error", **options)
    except pyvips.Error:
        errors.was_taken()
        raise


def _decode_whole(path: Path, directory: TiffDirectory) -> NDArray[np.uint8]:
    """An image in strips, which libvips can only decode from its start; forks share the pixels."""
    size = directory.width * directory.height * directory.samples
    reason = ""
    if size > _LARGEST_STRIPPED_BYTES:
        reason = f"not tiled and too large to be decoded whole ({size >> 20} MiB)"
    if directory.compression == _JPEG:
        reason = "stored in JPEG strips, whose damage would go unnoticed"  # libtiff would only log it
    if reason:
        raise SlideRejected(f'slide "{path.name}" is {reason}; {_CONVERT}', code="not_tiled")
    return _Page(path, directory).fetch(0, 0, directory.width, directory.height)


def _as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey, RGB or RGBA as RGB over white: uint8 (height, width, 3)."""
    channels = pixels.shape[2]
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels if channels == 3 else over_white(pixels)
