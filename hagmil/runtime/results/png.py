"""Pictures as PNG."""

from __future__ import annotations

import numpy as np
import pyvips
from numpy.typing import NDArray

from hagmil.runtime.slides.vips_errors import error_buffer

_LEVEL, _FILTER = 1, "up"
"""For a heatmap, these take a quarter to a third of the time of Pillow at its lowest level, for a file that is a
quarter larger. Level 2 gives the size of Pillow's file in 1.4 times the time. Of the filters, "none" and "sub" give
larger files in about the same time, and "paeth" takes longer."""


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Returns:
        The bytes of the file.
    """
    height, width, _ = pixels.shape
    memory = np.ascontiguousarray(pixels)
    image = pyvips.Image.new_from_memory(memory.data, width, height, 3, "uchar").copy(interpretation="srgb")
    try:
        encoded: bytes = image.pngsave_buffer(compression=_LEVEL, filter=_FILTER)
    except pyvips.Error:
        error_buffer.count_taken()
        raise
    return encoded
