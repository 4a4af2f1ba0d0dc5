"""The interface of an open slide. It is implemented once per library (OpenSlide, libvips)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, SlideRejected, one_line
from hagmil.runtime.pixels import WHITE
from hagmil.runtime.slides.spacing import LARGEST_SPACING_UM, SMALLEST_SPACING_UM, Spacing
from hagmil.runtime.tiles.protocol import EncodedTiles
from hagmil.units import Level, Size


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """Metadata stored in a slide file, equal to what OpenSlide reports for every file that OpenSlide can open.

    Args:
        vendor: OpenSlide's name of the format; ``generic-tiff`` for a TIFF file of a vendor unknown to OpenSlide.
        levels: the pyramid, finest level first.
        spacing_xy_um: micrometres per level-0 pixel along x and y as stored in the file, plausible or not.
        objective_power: magnification stored in the file.
    """

    vendor: str
    levels: tuple[Level, ...]
    spacing_xy_um: tuple[float, float] | None
    objective_power: float | None


class Slide(ABC):
    """An open slide. Each thread needs a reader of its own: see :meth:`fork`.

    Subclasses read rectangles inside the image; this class fills what lies outside with white.

    Args:
        path: the file.
        metadata: the file's metadata.
        spacing: the spacing to use.
    """

    def __init__(self, path: Path, metadata: SlideMetadata, spacing: Spacing) -> None:
        self.path = path
        self.metadata = metadata
        self.spacing = spacing

    @property
    def size(self) -> Size:
        """Width and height of level 0 in pixels."""
        return Size(self.levels[0].width, self.levels[0].height)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest level first."""
        return self.metadata.levels

    @property
    def spacing_um(self) -> float | None:
        """Micrometres per level-0 pixel; None if unknown."""
        return self.spacing.um

    @property
    def spacing_source(self) -> str | None:
        """``metadata`` or ``override``; None if the spacing is unknown."""
        return self.spacing.source

    @property
    def objective_power(self) -> float | None:
        """Magnification stored in the file."""
        return self.metadata.objective_power

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self.metadata.vendor

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle of a level.

        Args:
            level: index into ``levels``.
            x: left edge in pixels of this level; may lie outside the image.
            y: upper edge in pixels of this level; may lie outside the image.
            width: width in pixels of this level.
            height: height in pixels of this level.

        Returns:
            uint8 (height, width, 3), RGB; white outside the image.

        Raises:
            SlideFailed: the pixels cannot be decoded (code ``unreadable``).
        """
        extent = self.levels[level]
        left, right = max(x, 0), min(x + width, extent.width)
        upper, lower = max(y, 0), min(y + height, extent.height)
        if left >= right or upper >= lower:
            return np.full((height, width, 3), WHITE, np.uint8)
        inside = self._read_inside(level, left, upper, right - left, lower - upper)
        if inside.shape[:2] == (height, width):
            return inside
        region = np.full((height, width, 3), WHITE, np.uint8)
        region[upper - y : lower - y, left - x : right - x] = inside
        return region

    def encoded_tiles(self, level: int) -> EncodedTiles | None:  # noqa: ARG002 - subclasses may use it
        """Open the encoded tiles of a level.

        Args:
            level: index into ``levels``.

        Returns:
            The tiles, which the caller closes; None if they cannot be decoded one by one.

        Raises:
            SlideFailed: the file does not give the positions of its tiles (code ``unreadable``).
        """
        return None

    def missing_boxes(self, level: int) -> NDArray[np.int64]:  # noqa: ARG002 - subclasses may use it
        """Return the areas of a level for which the file has no bytes, and which are read as white.

        Args:
            level: index into ``levels``.

        Returns:
            int64 (areas, 4): left, upper, right and lower edge in level-0 pixels.
        """
        return np.empty((0, 4), np.int64)

    @abstractmethod
    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle that lies inside the level: uint8 (height, width, 3)."""

    @abstractmethod
    def fork(self) -> Self:
        """Return an independent reader of the same file, for another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the file. Closing twice has no effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _undecodable(self, level: int, x: int, y: int, width: int, height: int, reason: str) -> SlideFailed:
        return SlideFailed(
            f'slide "{self.path.name}" cannot be decoded at level {level}, x {x}, y {y}, '
            f"{width} x {height} px: {one_line(reason)}; the file is damaged, copy or scan it again",
            code="unreadable",
        )


def require_spacing(slide: Slide) -> float:
    """Return the slide's spacing.

    Args:
        slide: an open slide.

    Returns:
        Micrometres per level-0 pixel.

    Raises:
        SlideRejected: the spacing is unknown or implausible (code ``spacing_missing``).
    """
    if slide.spacing_um is None:
        problem, stored = "gives no spacing", slide.metadata.spacing_xy_um
        if stored is not None:
            problem = (
                f"gives an implausible spacing of {stored[0]:.4g} x {stored[1]:.4g} um/px "
                f"(plausible: {SMALLEST_SPACING_UM:g} to {LARGEST_SPACING_UM:g})"
            )
        raise SlideRejected(f'slide "{slide.path.name}" {problem}; pass --spacing-um', code="spacing_missing")
    return slide.spacing_um
