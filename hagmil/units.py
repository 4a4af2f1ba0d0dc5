"""Geometry shared by the whole package.

A *level-0 pixel* is a pixel of the slide's finest level, with (0, 0) at the top-left corner, x to the right and y down.
Sizes are (width, height) and coordinates are (x, y). Arrays of pixels are uint8 (height, width, 3), RGB.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """A width and a height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution stored in a slide file.

    Args:
        index: 0 for the finest level.
        width: in pixels of this level.
        height: in pixels of this level.
        downsample: Level-0 pixels per pixel of this level, mean of both axes; 1.0 for level 0.
    """

    index: int
    width: int
    height: int
    downsample: float
