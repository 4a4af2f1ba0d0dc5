"""White, the colour of pixels that a slide does not have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WHITE = 255
"""Value of every channel outside the slide."""


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite pixels over white: regions that were not scanned look like glass.

    Args:
        rgba: uint8 (height, width, 4), colours not multiplied by alpha.

    Returns:
        uint8 (height, width, 3).
    """
    alpha = rgba[..., 3:]
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(rgba[..., :3])
    opacity = alpha.astype(np.uint32)
    mixed = (rgba[..., :3] * opacity + WHITE * (WHITE - opacity) + WHITE // 2) // WHITE
    return mixed.astype(np.uint8)
