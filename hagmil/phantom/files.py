"""Writes phantoms to files. Painting and encoding overlap, so that memory does not depend on the area of the slide.

1. A few threads paint strips of rows in advance and return them in order.
2. libvips reads the strips as one uncompressed PNG from a sequential stream. (PNG is the only format that the libvips
   wheel can read from a stream without seeking.)
3. libvips cuts tiles, computes the pyramid and writes the TIFF.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyvips
from numpy.typing import NDArray

from hagmil._files import atomic_path
from hagmil.phantom.paint import TILE_PX, Painter
from hagmil.phantom.spec import PhantomSpec, PhantomTruth

MASK_STEP_PX: Final = 4
"""Level-0 pixels per pixel of a lesion mask."""

JPEG_QUALITY: Final = 80

_STRIP_BYTES: Final = 12 << 20
_BIG_PIXELS: Final = 2**31
_THREADS: Final = min(4, os.cpu_count() or 1)

Strip = NDArray[np.uint8]


def write_phantom(
    spec: PhantomSpec, slide_path: Path, mask_path: Path | None = None, *, threads: int = _THREADS
) -> PhantomTruth:
    """Write a phantom and the mask of its lesions.

    The slide is a tiled pyramid: JPEG at quality 80 with 4:2:0 chroma, tiles of 256 pixels, levels that differ by a
    factor of 2, and the spacing in the TIFF resolution tags. The mask is a tiled, deflated, 8-bit TIFF pyramid with one
    band, 255 in lesions and 0 elsewhere, and its own spacing in the tags. A mask pixel is a square of ``MASK_STEP_PX``
    level-0 pixels; the last row and column may extend beyond the slide. A phantom without lesions gets an empty mask.

    Args:
        spec: the phantom.
        slide_path: path of the TIFF; the file appears complete or not at all.
        mask_path: path of the mask; None for no mask.
        threads: number of strips that are painted at the same time; the pixels do not depend on it.

    Returns:
        The known truth of the phantom.
    """
    painter = Painter(spec)
    _write_slide(painter, slide_path, threads)
    if mask_path is not None:
        _write_mask(painter, mask_path, threads)
    anatomy = painter.anatomy
    return PhantomTruth(spec, anatomy.tissue_share, anatomy.lesion_share, anatomy.lesions, anatomy.pen_marked)


def _write_slide(painter: Painter, path: Path, threads: int) -> None:
    size = painter.spec.size_px
    rows = max(16, min(TILE_PX, _STRIP_BYTES // (3 * size)))

    def strip(top: int) -> Strip:
        return painter.paint(0, top, size, min(rows, size - top))

    _save(
        path,
        _in_order(strip, range(0, size, rows), threads),
        size_px=size,
        colour_type=2,
        spacing_um=painter.spec.spacing_um,
        compression="jpeg",
        Q=JPEG_QUALITY,
        region_shrink="mean",
        bigtiff=size * size >= _BIG_PIXELS,
    )


def _write_mask(painter: Painter, path: Path, threads: int) -> None:
    size = -(-painter.spec.size_px // MASK_STEP_PX)
    rows = max(16, min(TILE_PX, _STRIP_BYTES // size))

    def strip(top: int) -> Strip:
        return painter.paint_mask(0, top, size, min(rows, size - top), MASK_STEP_PX)

    _save(
        path,
        _in_order(strip, range(0, size, rows), threads),
        size_px=size,
        colour_type=0,
        spacing_um=painter.spec.spacing_um * MASK_STEP_PX,
        compression="deflate",
        region_shrink="nearest",
        bigtiff=size * size >= _BIG_PIXELS,
    )


def _in_order(paint: Callable[[int], Strip], tops: range, threads: int) -> Iterator[Strip]:
    """Yield the strips from top to bottom, painted slightly in advance (step 1)."""
    pending: deque[Future[Strip]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="phantom") as pool:
        try:
            for top in tops:
                pending.append(pool.submit(paint, top))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _save(
    path: Path, strips: Iterator[Strip], *, size_px: int, colour_type: int, spacing_um: float, **options: Any
) -> None:
    """Stream strips through libvips into a tiled pyramid (steps 2 and 3)."""
    reader = _PngReader(size_px, size_px, strips, colour_type)
    source = pyvips.SourceCustom()
    source.on_read(reader.read)
    pixels_per_mm = 1000.0 / spacing_um

    def save(temporary: Path) -> None:
        image = pyvips.Image.new_from_source(source, "", access="sequential", unlimited=True)
        image.tiffsave(
            str(temporary),
            tile=True,
            tile_width=TILE_PX,
            tile_height=TILE_PX,
            pyramid=True,
            resunit="cm",
            xres=pixels_per_mm,
            yres=pixels_per_mm,
            keep="none",
            **options,
        )

    with atomic_path(path) as temporary:
        try:
            _in_thread(save, temporary, reader.stop)
        except pyvips.Error:
            if reader.failure is None:
                raise
        finally:
            reader.close()
        if reader.failure is not None:
            raise reader.failure


def _in_thread(save: Callable[[Path], None], path: Path, stop: Callable[[BaseException], None]) -> None:
    """Save in another thread, because signals arrive in the main thread, where libvips would lose their exception."""
    with ThreadPoolExecutor(1, thread_name_prefix="phantom-save") as pool:
        try:
            pool.submit(save, path).result()
        except BaseException as error:
            stop(error)
            raise


class _PngReader:
    """A stream of an uncompressed PNG that is generated while it is read.

    libvips calls it from C, where an exception would be lost; it is stored in ``failure``, and the stream ends.

    Args:
        width: width in pixels.
        height: height in pixels.
        strips: uint8 (rows, width) grey or (rows, width, 3) RGB, from top to bottom.
        colour_type: 0 for grey, 2 for RGB, as in the PNG specification.
    """

    def __init__(self, width: int, height: int, strips: Iterator[Strip], colour_type: int) -> None:
        self.failure: BaseException | None = None
        self._parts = _png_parts(width, height, strips, colour_type)
        self._rest = memoryview(b"")

    def read(self, length: int) -> memoryview | None:
        """Read up to ``length`` bytes; None at the end."""
        try:
            if self.failure is not None:
                return None
            while not self._rest:
                piece = next(self._parts, None)
                if piece is None:
                    return None
                self._rest = memoryview(piece)
        except BaseException as failure:  # noqa: BLE001 raised again by the caller, outside C
            self.failure = failure
            return None
        part, self._rest = self._rest[:length], self._rest[length:]
        return part

    def stop(self, failure: BaseException) -> None:
        """End the stream at the next read."""
        self.failure = self.failure or failure

    def close(self) -> None:
        """Stop painting and free the pixels."""
        self._rest = memoryview(b"")
        self._parts.close()


def _png_parts(width: int, height: int, strips: Iterator[Strip], colour_type: int) -> Generator[bytes, None, None]:
    """Yield the bytes of an uncompressed PNG: signature, header, one IDAT chunk per strip, end."""
    size = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size)
    deflate = zlib.compressobj(0)
    for strip in strips:
        rows = strip.reshape(strip.shape[0], -1)  # (rows, width * bands)
        filtered = np.zeros((rows.shape[0], rows.shape[1] + 1), np.uint8)  # each row starts with filter type 0 (none)
        filtered[:, 1:] = rows
        yield _chunk(b"IDAT", deflate.compress(filtered.data))
    yield _chunk(b"IDAT", deflate.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk: length, type, data, checksum."""
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))
