"""Summaries of feature files, made without reading features: a cohort of terabytes is checked in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from hagmil.errors import DataError
from hagmil.features import FeatureHeader, read_header


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One stage of a slide's features.

    Args:
        name: name of the stage.
        spacing_um: micrometres per pixel.
        patch_px: side of a patch, as input to the backbone.
        rows: number of patches.
        feature_dim: length of a feature vector.
    """

    name: str
    spacing_um: float
    patch_px: int
    rows: int
    feature_dim: int


@dataclass(frozen=True, slots=True)
class FeatureSummary:
    """The features of one slide.

    Args:
        slide_id: name of the slide.
        header: header of the feature file; None if the layout has none.
        stages: coarse to fine.
    """

    slide_id: str
    header: FeatureHeader | None
    stages: tuple[StageSummary, ...]


def read_feature_summary(path: Path, stages: Sequence[str] | None = None) -> FeatureSummary:
    """Read the header and the sizes of one of our feature files.

    Args:
        path: the ``.h5`` file.
        stages: names of the stages to use, coarse to fine; None: all stages.

    Raises:
        DataError: the file is missing, damaged or not a feature file, or a stage is missing.
    """
    header = read_header(path)
    names = header.stages if stages is None else tuple(stages)
    absent = [name for name in names if name not in header.stages]
    if absent:
        raise DataError(
            f'features "{path}" have no stage {", ".join(absent)}; they have {", ".join(header.stages)}',
            code="features_missing",
        )
    try:
        with h5py.File(path, "r") as file:
            return FeatureSummary(header.slide_id, header, tuple(_stage(file[name], name) for name in names))
    except (KeyError, OSError, ValueError) as error:
        raise DataError(f'features "{path}" are damaged: {error}', code="features_unreadable") from error


def _stage(group: h5py.Group, name: str) -> StageSummary:
    rows, feature_dim = group["features"].shape
    return StageSummary(
        name=name,
        spacing_um=float(group.attrs["spacing_um"]),
        patch_px=int(group.attrs["patch_size"]),
        rows=int(rows),
        feature_dim=int(feature_dim),
    )
