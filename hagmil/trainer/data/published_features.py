"""Features in the layouts of the published code, read without executing anything in the files.

- HAG-MIL: ``<root>_level_2/pt_files/<slide>.pt``, ``<root>_level_1_corresponding/pt_files/<slide>.pt`` and so on to
  level 0, one tensor per file. Rows 4i to 4i + 3 of a level are the children of row i of the next coarser level.
- HMIL: ``<slide>.pt`` in one folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from hagmil.errors import BundleError, DataError
from hagmil.trainer.published.torch_file import check_checksums, copy_tensor, read_torch_file

HAG_MIL_LEVELS = (2, 1, 0)
"""Levels of the published Camelyon16 features, coarse to fine."""
_SLIDE_SUFFIX = ".svs"


@dataclass(frozen=True, slots=True)
class PublishedBag:
    """The features of one slide; checked, but not read yet.

    Args:
        slide_id: name of the slide.
        paths: one file per stage, coarse to fine.
        stages: the tensors in these files, (patches, dim) or (1, patches, dim), mapped to the files.
    """

    slide_id: str
    paths: tuple[Path, ...]
    stages: tuple[Tensor, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Number of patches of each stage."""
        return tuple(stage.shape[-2] for stage in self.stages)

    @property
    def feature_dim(self) -> int:
        """Length of a feature vector."""
        return self.stages[0].shape[-1]

    def load(self) -> tuple[Tensor, ...]:
        """Read the features into memory.

        Returns:
            For each stage, coarse to fine, float16 or float32 (patches, dim).

        Raises:
            DataError: a file is damaged, or its numbers are not floating-point numbers.
        """
        if not all(stage.is_floating_point() for stage in self.stages):
            raise DataError(f'slide "{self.slide_id}": its features are not floating-point numbers')
        try:
            return tuple(_load_stage(stage, path) for stage, path in zip(self.stages, self.paths, strict=True))
        except BundleError as error:
            raise DataError(f'slide "{self.slide_id}": {error.message}', code=error.code) from error


def open_hag_mil_bag(
    root: Path, slide_id: str, *, levels: Sequence[int] = HAG_MIL_LEVELS, factor: int = 2
) -> PublishedBag:
    """Open the features of one slide in the layout of the published HAG-MIL.

    Args:
        root: common beginning of the paths of the feature folders: ``features/camelyon`` for
            ``features/camelyon_level_2``.
        slide_id: name of the slide; the ending ``.svs`` is removed, as in the published code.
        levels: levels of the slide files, coarse to fine.
        factor: f, the ratio of the spacings of successive levels.

    Returns:
        The bag; its features are not read yet.

    Raises:
        DataError: a file is missing or is not a feature file, or a level does not have f² times the rows of the
            next coarser level.
    """
    name = slide_id.removesuffix(_SLIDE_SUFFIX)
    folders = [f"{root.name}_level_{level}{'_corresponding' if place else ''}" for place, level in enumerate(levels)]
    paths = [root.with_name(folder) / "pt_files" / f"{name}.pt" for folder in folders]
    bag = PublishedBag(name, tuple(paths), tuple(_open_stage(name, path) for path in paths))
    if len({stage.shape[-1] for stage in bag.stages}) > 1:
        raise DataError(f'slide "{name}": feature vectors of its levels have different lengths')
    for (coarse, fine), path in zip(pairwise(bag.rows), paths[1:], strict=True):
        if fine != coarse * factor**2:
            raise DataError(
                f'slide "{name}": "{path}" has {fine} rows, but {factor}² times the {coarse} rows of the level above '
                f"are {coarse * factor**2}; extract the slide again"
            )
    return bag


def open_hmil_bag(folder: Path, slide_id: str) -> PublishedBag:
    """Open the features of one slide in the layout of the published HMIL.

    Args:
        folder: folder of ``<slide>.pt`` files.
        slide_id: name of the slide; the ending ``.svs`` is removed.

    Returns:
        The bag, with one stage; its features are not read yet.

    Raises:
        DataError: the file is missing or is not a feature file.
    """
    name = slide_id.removesuffix(_SLIDE_SUFFIX)
    path = folder / f"{name}.pt"
    return PublishedBag(name, (path,), (_open_stage(name, path),))


def _open_stage(slide_id: str, path: Path) -> Tensor:
    if not path.is_file():
        raise DataError(f'no features of slide "{slide_id}" at "{path}"', code="features_missing")
    try:
        content = read_torch_file(path)
    except BundleError as error:
        raise DataError(f'slide "{slide_id}": {error.message}', code=error.code) from error
    if not isinstance(content, Tensor):
        raise DataError(f'slide "{slide_id}": "{path}" holds no tensor; save the tensor of features alone')
    shape = tuple(content.shape)
    if len(shape) != 2 and (len(shape) != 3 or shape[0] != 1):
        raise DataError(f'slide "{slide_id}": "{path}" holds a tensor of shape {shape}, not (patches, dim)')
    return content


def _load_stage(stage: Tensor, path: Path) -> Tensor:
    check_checksums(path)
    tensor = copy_tensor(stage, path)
    return (tensor if tensor.dtype == torch.float16 else tensor.float()).flatten(0, -2)  # (1, n, dim) -> (n, dim)
