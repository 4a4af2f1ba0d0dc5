"""The tiles without bytes of a TIFF file, which readers show as white.

Scanners store no bytes for areas that were not scanned, where white is right. Damaged files may also lack tiles of
tissue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.slides.tiff_pyramid import APERIO
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, read_tile_index
from hagmil.units import Level

NO_BOXES: NDArray[np.int64] = np.empty((0, 4), np.int64)


def missing_boxes(
    path: Path, directories: tuple[TiffDirectory, ...], levels: tuple[Level, ...], vendor: str
) -> tuple[NDArray[np.int64], ...]:
    """Return the areas of each level that have no bytes.

    In Aperio files, OpenSlide fills missing tiles from the next finer level, and shows the areas that level 0 lacks as
    white at every level.

    Args:
        path: the file.
        directories: the images that OpenSlide reads as levels, finest first.
        levels: the levels of the slide.
        vendor: OpenSlide's name of the format.

    Returns:
        For each level, int64 (tiles, 4): left, upper, right and lower edge in level-0 pixels; no tiles if the images do
        not correspond to the levels.

    Raises:
        TiffError: the tags are damaged.
        OSError: the file cannot be read.
    """
    if len(directories) != len(levels):
        return (NO_BOXES,) * len(levels)
    boxes = [_boxes(path, *pair) for pair in zip(directories, levels, strict=True)]
    if vendor == APERIO:
        boxes = [boxes[0]] * len(boxes)
    return tuple(boxes)


def _boxes(path: Path, directory: TiffDirectory, level: Level) -> NDArray[np.int64]:
    if not directory.missing_tiles or directory.tile_width is None or directory.tile_height is None:
        return NO_BOXES
    across, down = -(-directory.width // directory.tile_width), -(-directory.height // directory.tile_height)
    missing = np.flatnonzero(read_tile_index(path, directory).sizes[: across * down] == 0)
    row, column = np.divmod(missing, across)
    side = np.array([directory.tile_width, directory.tile_height] * 2)
    edges = np.stack([column, row, column + 1, row + 1], axis=1) * side  # (tiles, 4)
    boxes: NDArray[np.int64] = np.rint(edges * level.downsample).astype(np.int64)
    return boxes
