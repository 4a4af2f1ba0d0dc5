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
from hagmil.runtime.slides.dicom_frames import check_dicom_frames
from hagmil.runtime.slides.limits import check_limits
from hagmil.runtime.slides.openslide_reader import OpenSlideReader, detect_vendor, dicom_series
from hagmil.runtime.slides.pixel_format import check_colours, check_levels, check_pages
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.slide_files import files_of_series
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

_DICOM = "dicom"
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
    pages = _read_pages(path)
    vendor = detect_vendor(path)  # step 1
    levels: tuple[TiffDirectory, ...] = ()
    if vendor in (None, APERIO, GENERIC_TIFF):
        directories = _directories(path, pages, vendor)
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
    elif vendor == _DICOM:
        check_dicom_frames([path, *files_of_series(path)])
    elif vendor == _PHILIPS:
        levels = tuple(page for page in _directories(path, pages, vendor) if page.tiled)
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


def _read_pages(path: Path) -> tuple[TiffDirectory, ...] | TiffError | OSError:
    """Read the tags of a TIFF file and check their limits before a library opens the file.

    Returns:
        The pages; the error if this package cannot parse the file, which the libraries may be able to read.

    Raises:
        SlideFailed: the tags exceed a limit (code ``too_large``), so that opening the file could take minutes or
            gigabytes.
    """
    try:
        pages = read_directories(path)
        check_limits(path, pages)
    except TiffLimitError as error:
        raise SlideFailed(f'slide "{path.name}" is damaged: {error}; copy it again', code="too_large") from error
    except (TiffError, OSError) as error:
        return error
    return pages


def _directories(
    path: Path, pages: tuple[TiffDirectory, ...] | TiffError | OSError, vendor: str | None
) -> tuple[TiffDirectory, ...]:
    """Return the pages of a TIFF file; none if the tags are damaged but OpenSlide recognises the format."""
    if isinstance(pages, tuple):
        return pages
    if vendor is not None:
        return ()
    if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
        problem = f'lacks the folder "{path.stem}" with its image data; copy this folder beside it'
    elif isinstance(pages, NotTiffError):
        problem = "is not in a known slide format; if it should be a slide, copy it again"
    elif isinstance(pages, TiffError):
        problem = "cannot be opened: the file is cut off or damaged; copy it again"
        _log.debug('slide "%s": %s', path.name, pages)
    else:
        problem = f"cannot be opened: {pages.strerror}"
    raise SlideFailed(f'slide "{path.name}" {problem}', code="unreadable") from pages
