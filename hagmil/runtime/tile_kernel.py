"""Which tile kernel is used: the compiled one where it was built, else its plain twin.

Both give the same pixels; docs/decisions/0012-tile-engine.md says what the compiled one saves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime import plain_tiles

try:
    from hagmil.runtime import _tile_kernel as compiled
except ImportError as error:
    why_plain: str | None = str(error)
    start_patches, read_tiles = plain_tiles.start_patches, plain_tiles.read_tiles
else:
    why_plain = None
    start_patches, read_tiles = compiled.start_patches, compiled.read_tiles

REMEDY = "install a C compiler and libjpeg-turbo's headers (Debian, Ubuntu: gcc, libjpeg-dev), then hagmil once more"
"""How to get the compiled kernel."""

_COMPILED_UP_TO = 256  # side of a square that is reduced to a pixel


def reduce_pixels(pixels: NDArray[np.uint8], factor: int, means: NDArray[np.uint8]) -> None:
    """Means of squares of pixels, rounded as Pillow rounds them.

    Args:
        pixels: uint8 (height * factor, width * factor, 3), contiguous.
        factor: side of a square.
        means: uint8 (height, width, 3), contiguous; overwritten.
    """
    if why_plain is None and factor <= _COMPILED_UP_TO:
        compiled.reduce_pixels(pixels, factor, means)
    else:
        plain_tiles.reduce_pixels(pixels, factor, means)


def kernel_name() -> str:
    """What reads JPEG tiles here, for reports."""
    if why_plain is not None:
        return "plain, simplejpeg"
    return f"compiled, libjpeg-turbo {compiled.LIBJPEG_TURBO}"
