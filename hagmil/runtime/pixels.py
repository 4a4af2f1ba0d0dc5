"""Values of pixels that a slide does not have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WHITE = 255
"""Every channel of a pixel that the slide does not have."""


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay pixels with transparency over white; what a scanner left out is glass.

    Args:
        rgba: uint8 (height, width, 4), colours not multiplied by alpha.

    Returns:
        uint8 (height, width, 3).
    """
    alpha = rgba[..., 3:]
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(rgba[..., :3])
    share = alpha.astype(np.uint32)
    mixed = (rgba[..., :3] * share + WHITE * (WHITE - share) + WHITE // 2) // WHITE
    return mixed.astype(np.uint8)
