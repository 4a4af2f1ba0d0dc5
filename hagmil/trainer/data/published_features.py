"""Features and splits in the layouts of the published code, read without executing anything in them.

- HAG-MIL's features: ``<root>_level_2/pt_files/<slide>.pt``,
  ``<root>_level_1_corresponding/pt_files/<slide>.pt`` and so on to level 0, one tensor a file; rows 4i to 4i
  + 3 of a level are the children of row i of the one above.
- HMIL's features: ``<slide>.pt`` in one folder.
- CLAM's splits: ``splits_i.csv``, a column of slides for each part, and ``splits_i_bool.csv``, a row for each
  slide. Some published tables have a running number before the slide and no name over it.
- HMIL's splits: ``train_splits_i.pkl``, ``val_splits_i.pkl`` and ``test_splits_i.pkl``, each a pickled list
  of [slide, label, path of its features].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from hagmil.errors import BundleError, DataError
from hagmil.trainer.published.torch_file import StoredTensor, read_torch_file

HAG_MIL_LEVELS = (2, 1, 0)
"""Pyramid levels of the published Camelyon16 features, coarse to fine."""
_SLIDE_SUFFIX = ".svs"


@dataclass(frozen=True, slots=True)
class PublishedBag:
    """The features of one slide, found and checked, not yet read.

    Args:
        slide_id: the slide's name.
        stages: one tensor a stage, coarse to fine, (patches, dim) or (1, patches, dim).
    """

    slide_id: str
    stages: tuple[StoredTensor, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Patches of each stage."""
        return tuple(stage.shape[-2] for stage in self.stages)

    @property
    def feature_dim(self) -> int:
        """Length of a patch's feature vector."""
        return self.stages[0].shape[-1]

    def load(self) -> tuple[Tensor, ...]:
        """Read the features.

        Returns:
            For each stage, coarse to fine, float16 or float32 (patches, dim).

        Raises:
            DataError: a file is damaged, or its numbers are no floating-point numbers.
        """
        try:
            tensors = [stage.load() for stage in self.stages]
        except BundleError as error:
            raise DataError(f'slide "{self.slide_id}": {error.message}', code=error.code) from error
        if not all(tensor.is_floating_point() for tensor in tensors):
            raise DataError(f'slide "{self.slide_id}": its features are no floating-point numbers')
        return tuple(
            (tensor if tensor.dtype == torch.float16 else tensor.float()).flatten(0, -2)  # (1, n, dim) -> (n, dim)
            for tensor in tensors
        )


def open_hag_mil_bag(
    root: Path, slide_id: str, *, levels: Sequence[int] = HAG_MIL_LEVELS, factor: int = 2
) -> PublishedBag:
    """Find the features of one slide in HAG-MIL's layout.

    Args:
        root: what all feature folders' names begin with: ``features/camelyon`` for
            ``features/camelyon_level_2``.
        slide_id: the slide's name; a ``.svs`` at its end is dropped, as the published code does.
        levels: pyramid levels, coarse to fine.
        factor: f, the ratio of spacings between neighbouring levels.

    Returns:
        The bag; its numbers are not yet read.

    Raises:
        DataError: a file is missing or no feature file, or a level does not have f² times the rows of the one
        above.
    """
    name = slide_id.removesuffix(_SLIDE_SUFFIX)
    folders = [f"{root.name}_level_{level}{'_corresponding' if place else ''}" for place, level in enumerate(levels)]
    paths = [root.with_name(folder) / "pt_files" / f"{name}.pt" for folder in folders]
    bag = PublishedBag(name, tuple(_stored_features(name, path) for path in paths))
    if len({stage.shape[-1] for stage in bag.stages}) > 1:
        raise DataError(f'slide "{name}": its levels have feature vectors of different lengths')
    for (coarse, fine), path in zip(pairwise(bag.rows), paths[1:], strict=True):
        if fine != coarse * factor**2:
            raise DataError(
                f'slide "{name}": "{path}" has {fine} rows, but {factor}² times the {coarse} rows of the level above '
                f"are {coarse * factor**2}; extract the slide again"
            )
    return bag


def open_hmil_bag(folder: Path, slide_id: str) -> PublishedBag:
    """Find the features of one slide in HMIL's layout.

    Args:
        folder: of ``<slide>.pt`` files.
        slide_id: the slide's name; a ``.svs`` at its end is dropped.

    Returns:
        The bag, of one stage; its numbers are not yet read.

    Raises:
        DataError: the file is missing or no feature file.
    """
    name = slide_id.removesuffix(_SLIDE_SUFFIX)
    return PublishedBag(name, (_stored_features(name, folder / f"{name}.pt"),))


def _stored_features(slide_id: str, path: Path) -> StoredTensor:
    if not path.is_file():
        raise DataError(f'no features of slide "{slide_id}" at "{path}"', code="features_missing")
    try:
        content = read_torch_file(path)
    except BundleError as error:
        raise DataError(f'slide "{slide_id}": {error.message}', code=error.code) from error
    if not isinstance(content, StoredTensor):
        raise DataError(f'slide "{slide_id}": "{path}" holds no tensor; save the features alone')
    if len(content.shape) != 2 and (len(content.shape) != 3 or content.shape[0] != 1):
        raise DataError(f'slide "{slide_id}": "{path}" holds a tensor of {content.shape}, not (patches, dim)')
    return content
