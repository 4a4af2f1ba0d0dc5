"""Input of the readers in the reading benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReadingCase:
    """Patches on a slide.

    Args:
        name: name of the case.
        path: the slide.
        corners: int64 (n, 2), level-0 top-left (x, y), row by row.
        region_px: side of a patch in level-0 pixels.
    """

    name: str
    path: Path
    corners: NDArray[np.int64]
    region_px: int
