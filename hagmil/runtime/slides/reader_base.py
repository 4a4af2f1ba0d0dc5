"""What all slide readers share: the facts about a slide, its spacing, and white beyond its edge."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideFailed, SlideRejected, UsageError, one_line
from hagmil.runtime.pixels import WHITE
from hagmil.runtime.tiles.protocol import EncodedTiles
from hagmil.units import Level, Size

SMALLEST_SPACING_UM, LARGEST_SPACING_UM = 0.01, 50.0
"""Level-0 spacings outside this range are no microscope's: what a printer's default of 72 or 300 dots per
inch, or an image library's default of one pixel a millimetre, leaves in a file (352.8, 84.7 and 1000
um/px)."""

_LARGEST_ANISOTROPY = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What a file says about itself; equal to what OpenSlide reports wherever OpenSlide opens the file.

    Args:
        vendor: OpenSlide's word for the format, ``generic-tiff`` for TIFF files that it does not know.
        levels: the pyramid, finest first.
        spacing_xy_um: micrometres per level-0 pixel along x and y, as the file has it, believable or not.
        objective_power: the magnification named in the file.
    """

    vendor: str
    levels: tuple[Level, ...]
    spacing_xy_um: tuple[float, float] | None
    objective_power: float | None


@dataclass(frozen=True, slots=True)
class Spacing:
    """A slide's spacing and where it came from.

    Args:
        um: micrometres per level-0 pixel; None where nobody says.
        source: ``metadata``, ``override``, or None with ``um``.
    """

    um: float | None
    source: str | None


def decide_spacing(name: str, spacing_xy_um: tuple[float, float] | None, override_um: float | None) -> Spacing:
    """Take the override, else the file's own spacing if it can be a microscope's; never guess.

    Args:
        name: the slide's file name, for messages.
        spacing_xy_um: micrometres per level-0 pixel along x and y, as the file has it.
        override_um: what the user says; it wins over the file.

    Returns:
        The mean of both axes where the file's spacing is used; no spacing where the file gives none, or one
        outside ``SMALLEST_SPACING_UM`` to ``LARGEST_SPACING_UM``.

    Raises:
        UsageError: the override is no positive number.
        SlideRejected: the axes are more than 5 % apart (code ``spacing_anisotropic``).
    """
    if override_um is not None:
        if not (math.isfinite(override_um) and override_um > 0):
            raise UsageError(f"the spacing must be a number above 0 um/px, not {override_um}")
        return Spacing(override_um, "override")
    if spacing_xy_um is None:
        return Spacing(None, None)
    if not all(SMALLEST_SPACING_UM <= axis <= LARGEST_SPACING_UM for axis in spacing_xy_um):
        _log.warning(
            'slide "%s": %.6g x %.6g um/px in its metadata is no microscope\'s and is left aside',
            name,
            *spacing_xy_um,
        )
        return Spacing(None, None)
    x, y = spacing_xy_um
    mean = (x + y) / 2
    if abs(x - y) > _LARGEST_ANISOTROPY * mean:
        raise SlideRejected(
            f'slide "{name}" has pixels that are not square, {x:.4g} x {y:.4g} um; '
            "resample it to square pixels, or pass --spacing-um to take them for square",
            code="spacing_anisotropic",
        )
    return Spacing(mean, "metadata")


class SlideReader(ABC):
    """Base of the readers: holds the facts, and cuts each read to the part that the image covers.

    Args:
        path: the file.
        facts: what the file says about itself.
        spacing: what was decided about its spacing.
    """

    def __init__(self, path: Path, facts: SlideFacts, spacing: Spacing) -> None:
        self.path = path
        self.facts = facts
        self.spacing = spacing

    @property
    def size(self) -> Size:
        """Width and height of level 0."""
        return Size(self.facts.levels[0].width, self.facts.levels[0].height)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first."""
        return self.facts.levels

    @property
    def spacing_um(self) -> float | None:
        """Micrometres per level-0 pixel; None where neither the file nor the user says."""
        return self.spacing.um

    @property
    def spacing_source(self) -> str | None:
        """``metadata`` or ``override``; None without a spacing."""
        return self.spacing.source

    @property
    def objective_power(self) -> float | None:
        """The magnification named in the file."""
        return self.facts.objective_power

    @property
    def vendor(self) -> str:
        """OpenSlide's word for the format."""
        return self.facts.vendor

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle of one level.

        Args:
            level: index into ``levels``.
            x: left edge in that level's pixels; it may lie outside of the image.
            y: upper edge in that level's pixels.
            width: of the rectangle, in that level's pixels.
            height: of the rectangle.

        Returns:
            uint8 (height, width, 3), RGB; white where the slide has no pixels.

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

    def encoded_tiles(self, level: int) -> EncodedTiles | None:  # noqa: ARG002 - a reader that has some looks
        """The level's encoded tiles, to be closed by the caller; None where they cannot be decoded one by one."""
        return None

    @abstractmethod
    def _read_inside(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a rectangle that lies within the level: uint8 (height, width, 3)."""

    @abstractmethod
    def fork(self) -> Self:
        """An independent reader of the same file, for another thread."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; closing twice does nothing."""

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
