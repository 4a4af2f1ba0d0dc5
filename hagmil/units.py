"""Units and geometry that the whole package shares.

Frames: a *level-0 pixel* is a pixel of the slide's finest level, (0, 0) its top-left corner, x to the right,
y down. Sizes are (width, height), coordinates (x, y); arrays of pixels are (height, width, 3), RGB, uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Microns = NewType("Microns", float)
"""A length in micrometres."""

MicronsPerPixel = NewType("MicronsPerPixel", float)
"""A spacing: micrometres from one pixel's centre to the next."""

Pixels = NewType("Pixels", int)
"""A length in pixels of whatever frame the name beside it says."""


@dataclass(frozen=True, slots=True)
class Size:
    """A width and a height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution stored in a slide file.

    Args:
        index: 0 is the finest.
        width: in this level's pixels.
        height: in this level's pixels.
        downsample: level-0 pixels per pixel of this level, the mean of both axes, 1.0 for level 0.
    """

    index: int
    width: int
    height: int
    downsample: float
