"""Sources of features: our HDF5 files, and the layouts of the published code.

A source gives a summary of the features of a slide, without reading them, and the features. The rest of the trainer
does not depend on the layout of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hagmil.errors import DataError
from hagmil.features import read_features
from hagmil.trainer.config.sections import DataConfig
from hagmil.trainer.data.feature_summary import FeatureSummary, StageSummary, read_feature_summary
from hagmil.trainer.data.published_features import PublishedBag, open_hag_mil_bag, open_hmil_bag
from hagmil.trainer.data.spacings import stage_factor

_MAX_NAMES = 5


class FeatureSource(Protocol):
    """Features of slides, by the names of the slides."""

    def summaries(self, slide_ids: Sequence[str]) -> dict[str, FeatureSummary]:
        """Summarise the features of each slide.

        Raises:
            DataError: features are missing or cannot be read.
        """
        ...

    def read(self, slide_id: str) -> tuple[Tensor, ...]:
        """Read the features of one slide.

        Returns:
            For each stage, coarse to fine, float16 or float32 (patches, feature_dim), rows in quadtree order.

        Raises:
            DataError: they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hdf5Source:
    """Files of ``hagmil extract``.

    Args:
        folder: folder of ``<slide_id>.h5`` files.
        stages: names of the stages to use, coarse to fine; None: all stages.
    """

    folder: Path
    stages: tuple[str, ...] | None = None

    def summaries(self, slide_ids: Sequence[str]) -> dict[str, FeatureSummary]:
        """See :class:`FeatureSource`."""
        missing = [slide_id for slide_id in slide_ids if not self._path(slide_id).is_file()]
        if missing:
            raise DataError(
                f'no features in "{self.folder}" for {quoted_list(missing)}; run hagmil extract on these slides',
                code="features_missing",
            )
        return {slide_id: read_feature_summary(self._path(slide_id), self.stages) for slide_id in slide_ids}

    def read(self, slide_id: str) -> tuple[Tensor, ...]:
        """See :class:`FeatureSource`."""
        stored = read_features(self._path(slide_id), self.stages)
        return tuple(torch.from_numpy(stage.features) for stage in stored.stages)

    def _path(self, slide_id: str) -> Path:
        return self.folder / f"{slide_id}.h5"


@dataclass(frozen=True, slots=True)
class HagMilPtSource:
    """``.pt`` files of the published HAG-MIL.

    Args:
        root: common beginning of the paths of the feature folders.
        levels: levels of the slide files, coarse to fine.
        spacing_um: micrometres per pixel of each level.
        patch_px: side of a patch.
    """

    root: Path
    levels: tuple[int, ...]
    spacing_um: tuple[float, ...]
    patch_px: int

    def summaries(self, slide_ids: Sequence[str]) -> dict[str, FeatureSummary]:
        """See :class:`FeatureSource`."""
        return {name: _summary(name, self._bag(name), self.spacing_um, self.patch_px) for name in slide_ids}

    def read(self, slide_id: str) -> tuple[Tensor, ...]:
        """See :class:`FeatureSource`."""
        return self._bag(slide_id).load()

    def _bag(self, slide_id: str) -> PublishedBag:
        factors = {stage_factor(*pair) for pair in zip(self.spacing_um, self.spacing_um[1:], strict=False)}
        if len(factors) > 1:
            raise DataError(f"spacings {self.spacing_um} must have the same ratio between all successive levels")
        return open_hag_mil_bag(self.root, slide_id, levels=self.levels, factor=next(iter(factors), 2))


@dataclass(frozen=True, slots=True)
class HmilPtSource:
    """``.pt`` files of the published HMIL.

    Args:
        folder: folder of ``<slide>.pt`` files.
        spacing_um: micrometres per pixel.
        patch_px: side of a patch.
    """

    folder: Path
    spacing_um: float
    patch_px: int

    def summaries(self, slide_ids: Sequence[str]) -> dict[str, FeatureSummary]:
        """See :class:`FeatureSource`."""
        return {
            name: _summary(name, open_hmil_bag(self.folder, name), (self.spacing_um,), self.patch_px)
            for name in slide_ids
        }

    def read(self, slide_id: str) -> tuple[Tensor, ...]:
        """See :class:`FeatureSource`."""
        return open_hmil_bag(self.folder, slide_id).load()


def source_of(data: DataConfig) -> FeatureSource:
    """The source of the features in a configuration."""
    if data.layout == "hdf5":
        return Hdf5Source(data.features, data.stages)
    assert data.spacing_um is not None  # checked by DataConfig
    assert data.patch_px is not None
    if data.layout == "hmil-pt":
        return HmilPtSource(data.features, data.spacing_um[0], data.patch_px)
    return HagMilPtSource(data.features, data.levels, data.spacing_um, data.patch_px)


def quoted_list(names: Sequence[str]) -> str:
    """Quote names for a message; only the first few if there are many."""
    more = len(names) - _MAX_NAMES
    return ", ".join(f'"{name}"' for name in names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _summary(slide_id: str, bag: PublishedBag, spacing_um: Sequence[float], patch_px: int) -> FeatureSummary:
    stages = tuple(
        StageSummary(f"{spacing:g}um", spacing, patch_px, rows, bag.feature_dim)
        for spacing, rows in zip(spacing_um, bag.rows, strict=True)
    )
    return FeatureSummary(slide_id, None, stages)
