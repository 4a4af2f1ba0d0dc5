"""Slides: one small protocol, and the choice of who reads a file.

1. OpenSlide's detection names the format from what is in the file, never from its ending.
2. A format that is no plain TIFF or Aperio (NDPI, MRXS, DICOM, Leica, Philips, Ventana, ...) goes to
   OpenSlide: libvips would take it for a TIFF whose pages mean something else.
3. For the others the TIFF tags tell the levels. libvips, which is faster, reads those that it decodes as they
   are.
4. The rest (JPEG 2000, gaps, planes apart) goes to OpenSlide, which also words the refusal of what nobody
   reads.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, SlideRejected
from hagmil.runtime.slides.openslide_reader import OpenSlideReader, detect_vendor, dicom_series
from hagmil.runtime.slides.tiff_pyramid import APERIO, GENERIC_TIFF, check_pixels, libvips_reads, pyramid_of
from hagmil.runtime.slides.vips_reader import VipsReader
from hagmil.runtime.tiles.protocol import EncodedTiles
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, TiffError, read_directories
from hagmil.units import Level, Size

__all__ = ["Slide", "dicom_series", "open_slide", "require_spacing"]

_log = logging.getLogger(__name__)


class Slide(Protocol):
    """A reader of one slide; not for two threads at once: each takes its own by ``fork``."""

    path: Path

    @property
    def size(self) -> Size:
        """Width and height of level 0."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first."""

    @property
    def spacing_um(self) -> float | None:
        """Micrometres per level-0 pixel; None where neither the file nor the user says."""

    @property
    def spacing_source(self) -> str | None:
        """``metadata`` or ``override``; None without a spacing."""

    @property
    def objective_power(self) -> float | None:
        """The magnification named in the file."""

    @property
    def vendor(self) -> str:
        """OpenSlide's word for the format."""

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle of one level, x and y in that level's pixels: uint8 (height, width, 3), RGB.

        Outside of the image it is white. Raises SlideFailed (code ``unreadable``) where pixels cannot be
        decoded.
        """

    def encoded_tiles(self, level: int) -> EncodedTiles | None:
        """The level's encoded tiles, to be closed by the caller; None where they cannot be decoded one by one.

        Raises SlideFailed (code ``unreadable``) where the file does not say where they lie.
        """

    def fork(self) -> Self:
        """An independent reader of the same file, for another thread."""

    def close(self) -> None:
        """Let go of the file; closing twice does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_slide(path: Path, *, spacing_um: float | None = None) -> Slide:
    """Open a slide by what its file is.

    Nothing is decoded yet: a file whose tiles are damaged opens, and fails where they are read. A spacing in
    the metadata that no microscope has (over 50 um/px, such as a default of 72 dots per inch) counts as none.

    Args:
        path: the file; for DICOM any file of the series, for MRXS the ``.mrxs``.
        spacing_um: micrometres per level-0 pixel that overrides the file's.

    Returns:
        The slide; ``spacing_um`` is None where nobody says. It never guesses.

    Raises:
        SlideFailed: the file does not exist (code ``not_found``) or is no slide that can be read
            (``unreadable``).
        SlideRejected: pixels that are not square (``spacing_anisotropic``), not 8-bit grey or RGB
            (``pixel_format``), or a file without tiles that is huge or of JPEG (``not_tiled``).
        UsageError: ``spacing_um`` is no positive number.
    """
    path = Path(path)
    _check_file(path)
    vendor = detect_vendor(path)  # step 1
    if vendor in (None, APERIO, GENERIC_TIFF):
        directories = _directories(path, vendor)
        if directories:
            check_pixels(path, directories)
            levels = pyramid_of(directories, vendor or GENERIC_TIFF)
            if vendor is None or libvips_reads(levels):  # step 3
                _log.debug('slide "%s": libvips reads it (%s, %d levels)', path.name, vendor or "tiff", len(levels))
                return VipsReader.open(path, levels, vendor or GENERIC_TIFF, spacing_um)
    _log.debug('slide "%s": OpenSlide reads it (%s)', path.name, vendor)
    return OpenSlideReader.open(path, spacing_um)  # steps 2 and 4


def require_spacing(slide: Slide) -> float:
    """The slide's spacing, for a caller that cannot go on without.

    Args:
        slide: an open slide.

    Returns:
        Micrometres per level-0 pixel.

    Raises:
        SlideRejected: neither the file nor the user gives it (code ``spacing_missing``).
    """
    if slide.spacing_um is None:
        raise SlideRejected(f'slide "{slide.path.name}" gives no spacing; pass --spacing-um', code="spacing_missing")
    return slide.spacing_um


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise SlideFailed(f'slide "{path}" is a folder; name the slide file in it', code="unreadable")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise SlideFailed(f'slide "{path}" does not exist', code="not_found") from error
    except OSError as error:
        raise SlideFailed(f'slide "{path}" cannot be opened: {error.strerror}', code="unreadable") from error
    if empty:
        raise SlideFailed(f'slide "{path.name}" is an empty file; copy it again', code="unreadable")


def _directories(path: Path, vendor: str | None) -> tuple[TiffDirectory, ...]:
    """The pages of a TIFF file; none where OpenSlide shall try although its tags cannot be followed."""
    try:
        return read_directories(path)
    except (TiffError, OSError) as error:
        if vendor is not None:
            return ()
        raise SlideFailed(
            f'slide "{path.name}" is in no slide format that is known ({error}); '
            "if it should be a slide, copy it again",
            code="unreadable",
        ) from error
