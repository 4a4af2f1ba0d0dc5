"""Colours from amounts of stain; optical densities add up (Beer-Lambert law).

Each slide has its own stain vectors, strengths and white point, within the variation of laboratories and scanners.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

HAEM_STEP: Final = 1.6 / 255
"""Amount of haematoxylin per step of the colour table."""
EOSIN_STEP: Final = 1.3 / 255
"""Amount of eosin per step of the colour table."""

_HAEM_DENSITY: Final = np.array([1.45, 1.66, 0.82])
_EOSIN_DENSITY: Final = np.array([0.10, 0.98, 0.50])
_WHITE: Final = np.array([244.0, 243.0, 245.0])
_PENS: Final = ((0.20, 0.28, 0.62), (0.10, 0.42, 0.24), (0.12, 0.12, 0.14), (0.62, 0.12, 0.16))


def colour_table(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour table of a slide, uint8 (256, 256, 3), indexed by steps of haematoxylin and eosin."""
    haem = _HAEM_DENSITY * rng.lognormal(0.0, 0.07, 3) * rng.uniform(0.82, 1.18)
    eosin = _EOSIN_DENSITY * rng.lognormal(0.0, 0.08, 3) * rng.uniform(0.75, 1.25)
    white = _WHITE + rng.uniform(-4.0, 4.0) + rng.uniform(-1.5, 1.5, 3)
    steps = np.arange(256)
    density = (steps * HAEM_STEP)[:, None, None] * haem + (steps * EOSIN_STEP)[None, :, None] * eosin
    return np.clip(np.rint(white * np.exp(-density)), 0, 255).astype(np.uint8)


def pen_colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """Transmission of a pen for red, green and blue, float32 (3,)."""
    return np.array(_PENS[int(rng.integers(len(_PENS)))], np.float32)
