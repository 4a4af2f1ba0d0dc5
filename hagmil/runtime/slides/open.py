"""Open a slide with the library that reads its format best.

1. OpenSlide detects the format from the file's content, never from its name.
2. Formats other than Aperio and plain TIFF (NDPI, MRXS, DICOM, Leica, Philips, Ventana, ...) are read by OpenSlide:
   libvips would treat them as TIFF files and misinterpret their pages.
3. For Aperio and plain TIFF, the levels are determined from the TIFF tags. libvips, which is faster, reads the files
   that it decodes correctly.
4. OpenSlide reads the rest (JPEG 2000, missing tiles, separate colour planes), or reports why it cannot.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hagmil.errors import SlideFailed
from hagmil.runtime.slides.limits import check_limits
from hagmil.runtime.slides.openslide_reader import OpenSlideReader, detect_vendor, dicom_series
from hagmil.runtime.slides.pixel_format import check_colours, check_levels, check_pages
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.tiff_pyramid import (
    APERIO,
    GENERIC_TIFF,
    check_resolutions,
    libvips_can_read,
    openslide_levels,
    pyramid_levels,
)
from hagmil.runtime.slides.vips_reader import VipsReader
from hagmil.runtime.tiles.tiff_tags import NotTiffError, TiffDirectory, TiffError, TiffLimitError, read_directories

__all__ = ["dicom_series", "open_slide"]

_PHILIPS = "philips"

_log = logging.getLogger(__name__)


def open_slide(path: Path, *, spacing_um: float | None = None) -> Slide:
    """Open a slide; the library is chosen by the file's content.

    No pixels are decoded yet: a file with damaged tiles opens, and reading these tiles fails. An implausible spacing
    in the metadata (such as a default of 72 dots per inch) is ignored.

    Args:
        path: the file; any file of a DICOM series; the ``.mrxs`` file of an MRXS slide.
        spacing_um: micrometres per level-0 pixel; overrides the file's.

    Returns:
        The slide; its ``spacing_um`` is None if the spacing is unknown.

    Raises:
        SlideFailed: the file does not exist (code ``not_found``), or cannot be read as a slide (``unreadable``).
        SlideRejected: the pixels are not square (``spacing_anisotropic``), or at some level not 8-bit grey or RGB
            (``pixel_format``), or the file has no tiles and is huge or JPEG-compressed (``not_tiled``), or the
            resolution tags of two levels contradict each other (``spacing_contradictory``).
        UsageError: ``spacing_um`` is not a positive number.
    """
    path = Path(path)
    _check_file(path)
    _check_limits(path)
    vendor = detect_vendor(path)  # step 1
    levels: tuple[TiffDirectory, ...] = ()
    if vendor in (None, APERIO, GENERIC_TIFF):
        directories = _directories(path, vendor)
        if directories:
            check_pages(path, directories)
            levels = pyramid_levels(directories, vendor or GENERIC_TIFF)
            check_levels(path, levels)
            check_colours(path, levels)
            if spacing_um is None and vendor != APERIO:
                check_resolutions(path, levels)
            if vendor is None or libvips_can_read(levels):  # step 3
                _log.debug('slide "%s": read by libvips (%s, %d levels)', path.name, vendor or "tiff", len(levels))
                return VipsReader.open(path, levels, vendor or GENERIC_TIFF, spacing_um)
            levels = openslide_levels(directories, vendor)
            check_levels(path, levels)
            check_colours(path, levels)
    elif vendor == _PHILIPS:
        levels = tuple(page for page in _directories(path, vendor) if page.tiled)
    _log.debug('slide "%s": read by OpenSlide (%s)', path.name, vendor)
    return OpenSlideReader.open(path, spacing_um, levels)  # steps 2 and 4


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise SlideFailed(f'slide "{path}" is a folder; name the slide file in it', code="unreadable")
    if path.exists() and not path.is_file():
        raise SlideFailed(f'slide "{path}" is not a regular file but a device, pipe or socket', code="unreadable")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise SlideFailed(f'slide "{path}" does not exist', code="not_found") from error
    except OSError as error:
        raise SlideFailed(f'slide "{path}" cannot be opened: {error.strerror}', code="unreadable") from error
    if empty:
        raise SlideFailed(f'slide "{path.name}" is an empty file; copy it again', code="unreadable")


def _check_limits(path: Path) -> None:
    """Check the tags of a TIFF file before a library opens it, which could take minutes or gigabytes.

    Raises:
        SlideFailed: the tags exceed a limit (code ``too_large``).
    """
    try:
        check_limits(path, read_directories(path))
    except TiffLimitError as error:
        raise SlideFailed(f'slide "{path.name}" is damaged: {error}; copy it again', code="too_large") from error
    except (TiffError, OSError):
        return  # no TIFF file that this package can parse; the libraries report it


def _directories(path: Path, vendor: str | None) -> tuple[TiffDirectory, ...]:
    """Read the pages of a TIFF file; empty if the tags are damaged but OpenSlide recognises the format."""
    try:
        return read_directories(path)
    except (TiffError, OSError) as error:
        if vendor is not None:
            return ()
        if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
            problem = f'lacks the folder "{path.stem}" with its image data; copy this folder beside it'
        elif isinstance(error, NotTiffError):
            problem = "is not in a known slide format; if it should be a slide, copy it again"
        elif isinstance(error, TiffError):
            problem = "cannot be opened: the file is cut off or damaged; copy it again"
            _log.debug('slide "%s": %s', path.name, error)
        else:
            problem = f"cannot be opened: {error.strerror}"
        raise SlideFailed(f'slide "{path.name}" {problem}', code="unreadable") from error
