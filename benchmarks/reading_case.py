"""What the readers of the reading benchmark read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """Patches on a slide.

    Args:
        name: one of the benchmark's.
        path: the slide.
        corners: int64 (n, 2), level-0 corners, row after row.
        region_px: side of a patch in level-0 pixels.
    """

    name: str
    path: Path
    corners: NDArray[np.int64]
    region_px: int
