"""What a feature file holds, read without its arrays: so that a cohort of terabytes is checked in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py

from hagmil.errors import DataError
from hagmil.features import FeatureHeader, read_header


@dataclass(frozen=True, slots=True)
class StageOutline:
    """One stage of a feature file.

    Args:
        name: the stage's name.
        spacing_um: micrometres per pixel.
        patch_px: side of a patch as the backbone saw it.
        rows: patches.
        feature_dim: length of a feature vector.
    """

    name: str
    spacing_um: float
    patch_px: int
    rows: int
    feature_dim: int


@dataclass(frozen=True, slots=True)
class Outline:
    """One feature file: its header and the sizes of its stages, coarse to fine."""

    header: FeatureHeader
    stages: tuple[StageOutline, ...]


def read_outline(path: Path) -> Outline:
    """Read the header and the sizes of a feature file.

    Raises:
        DataError: it is missing, damaged, or no feature file.
    """
    header = read_header(path)
    try:
        with h5py.File(path, "r") as file:
            return Outline(header, tuple(_stage(file[name], name) for name in header.stages))
    except (KeyError, OSError, ValueError) as error:
        raise DataError(f'features "{path}" are damaged: {error}', code="features_unreadable") from error


def _stage(group: h5py.Group, name: str) -> StageOutline:
    rows, feature_dim = group["features"].shape
    return StageOutline(
        name=name,
        spacing_um=float(group.attrs["spacing_um"]),
        patch_px=int(group.attrs["patch_size"]),
        rows=int(rows),
        feature_dim=int(feature_dim),
    )
