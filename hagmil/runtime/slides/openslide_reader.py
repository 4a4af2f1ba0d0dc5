"""Reader for slides that libvips cannot open (NDPI, MRXS, DICOM, ...) or does not decode correctly (JPEG 2000)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, one_line
from hagmil.runtime.pixels import over_white
from hagmil.runtime.slides.missing_tiles import missing_boxes
from hagmil.runtime.slides.slide import Slide, SlideMetadata
from hagmil.runtime.slides.spacing import Spacing, resolve_spacing
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, TiffError
from hagmil.units import Level

_CACHE_BYTES = 64 << 20
_SERIES = "dicom.SeriesInstanceUID"


class _SharedHandle:
    """A reference-counted OpenSlide handle, shared by a reader and all its forks.

    OpenSlide is thread-safe. With one handle there is one tile cache, so memory does not grow with the number of
    threads, and the file's index, which takes seconds to read in some formats, is read once.
    """

    def __init__(self, path: Path) -> None:
        self.slide = openslide.OpenSlide(path)
        self.slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        self._lock = threading.Lock()
        self._references = 1

    def share(self) -> Self:
        with self._lock:
            self._references += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._references -= 1
            last = self._references == 0
        if last:
            self.slide.close()


class OpenSlideReader(Slide):
    """A slide read by OpenSlide."""

    def __init__(
        self,
        path: Path,
        metadata: SlideMetadata,
        spacing: Spacing,
        handle: _SharedHandle,
        missing: tuple[NDArray[np.int64], ...],
    ) -> None:
        super().__init__(path, metadata, spacing)
        self._handle: _SharedHandle | None = handle
        self._missing = missing

    @classmethod
    def open(cls, path: Path, spacing_um: float | None, directories: tuple[TiffDirectory, ...] = ()) -> OpenSlideReader:
        """Open a file.

        Args:
            path: the file.
            spacing_um: micrometres per level-0 pixel; overrides the file's.
            directories: the images of a TIFF file that are its levels, finest first.

        Raises:
            SlideFailed: OpenSlide cannot open the file (code ``unreadable``).
            SlideRejected: the pixels are not square (code ``spacing_anisotropic``).
        """
        try:
            handle = _SharedHandle(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideFailed(
                f'slide "{path.name}" cannot be opened: {one_line(str(error))}', code="unreadable"
            ) from error
        try:
            metadata = _metadata(handle.slide)
            spacing = resolve_spacing(path.name, metadata.spacing_xy_um, spacing_um)
            missing = missing_boxes(path, directories, metadata.levels, metadata.vendor)
            return cls(path, metadata, spacing, handle, missing)
        except (TiffError, OSError) as error:
            handle.release()
            raise SlideFailed(f'slide "{path.name}" cannot be opened: {error}', code="unreadable") from error
        except BaseException:
            handle.release()
            raise

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        if self._handle is None:
            raise ValueError(f'slide "{self.path.name}" is closed')
        downsample = self.levels[level].downsample
        origin = (round(x * downsample), round(y * downsample))  # OpenSlide takes level-0 pixels
        try:
            rgba = np.asarray(self._handle.slide.read_region(origin, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise self._undecodable(level, x, y, width, height, str(error)) from error
        return over_white(rgba)

    def missing_boxes(self, level: int) -> NDArray[np.int64]:
        """See ``Slide.missing_boxes``."""
        return self._missing[level]

    def fork(self) -> OpenSlideReader:
        """Return a reader of the same file, for another thread. The file stays open until all readers are closed."""
        if self._handle is None:
            raise ValueError(f'slide "{self.path.name}" is closed')
        return OpenSlideReader(self.path, self.metadata, self.spacing, self._handle.share(), self._missing)

    def close(self) -> None:
        """Close the reader. Closing twice has no effect."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.release()


def detect_vendor(path: Path) -> str | None:
    """Return OpenSlide's name of a file's format, detected from the content; None if the format is unknown."""
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


def dicom_series(path: Path) -> str | None:
    """Return the DICOM series of a file. All files of one series belong to one slide.

    Args:
        path: a file.

    Returns:
        The SeriesInstanceUID; None if OpenSlide cannot open the file as DICOM.
    """
    try:
        with openslide.OpenSlide(path) as slide:
            series: str | None = slide.properties.get(_SERIES)
            return series
    except (openslide.OpenSlideError, OSError):
        return None


def _metadata(slide: openslide.OpenSlide) -> SlideMetadata:
    levels = tuple(
        Level(index, width, height, float(downsample))
        for index, ((width, height), downsample) in enumerate(
            zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        )
    )
    properties = slide.properties
    x, y = (_number(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y))
    return SlideMetadata(
        vendor=properties[openslide.PROPERTY_NAME_VENDOR],
        levels=levels,
        spacing_xy_um=None if x is None or y is None else (x, y),
        objective_power=_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
