"""Whether an existing feature file is the one that an extraction would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hagmil.errors import DataError
from hagmil.features import FeatureHeader, StageOutline, read_header, read_outline
from hagmil.tissue_parameters import TissueParameters


@dataclass(frozen=True, slots=True)
class ExpectedFeatures:
    """What determines the features of a slide.

    Args:
        slide_sha256: digest of the slide.
        spacing_um: micrometres per level-0 pixel, which overrides the file's; None uses the file's.
        backbone_sha256: digest of the backbone.
        stages: name and spacing in micrometres per pixel of every stage, coarse to fine.
        patch_px: side of a patch in pixels.
        tissue: parameters of the tissue mask.
        dtype: type of the features, as named by NumPy.
        dim: length of a feature vector.
        max_missing: number of patches that may be left out.
    """

    slide_sha256: str
    spacing_um: float | None
    backbone_sha256: str
    stages: tuple[tuple[str, float], ...]
    patch_px: int
    tissue: TissueParameters
    dtype: str
    dim: int
    max_missing: int = 0


def require_same_features(path: Path, expected: ExpectedFeatures) -> None:
    """Require that a feature file is whole and has the features that an extraction would give.

    Raises:
        DataError: it differs (code ``exists``), or it is damaged.
    """
    try:
        header, stages = read_outline(path)
    except DataError as error:
        raise DataError(f"{error.message}; choose another folder or pass --overwrite", code=error.code) from error
    difference = _difference(header, stages, expected)
    if difference is not None:
        raise DataError(
            f'features "{path}" exist already, {difference}; choose another folder or pass --overwrite', code="exists"
        )


def require_same_slide(path: Path, slide_sha256: str) -> None:
    """Require that a feature file, if it is readable, has the features of a slide with this digest.

    Raises:
        DataError: it has those of another slide (code ``exists``).
    """
    try:
        header = read_header(path)
    except DataError:  # a damaged file may be replaced
        return
    if header.slide_sha256 not in ("", slide_sha256):
        raise DataError(
            f'features "{path}" exist already, {_of_another_slide(header)}; choose another folder or pass '
            "overwrite=True",
            code="exists",
        )


def _difference(header: FeatureHeader, stages: Sequence[StageOutline], expected: ExpectedFeatures) -> str | None:
    override_um = header.slide_spacing_um if header.spacing_source == "override" else None
    spacings = tuple((stage.name, stage.spacing_um) for stage in stages)
    sides = {stage.patch_px for stage in stages}
    kinds = {(stage.dtype, stage.dim) for stage in stages}
    differences = {
        _of_another_slide(header): header.slide_sha256 != expected.slide_sha256,
        f"from another backbone ({header.backbone_name})": header.backbone_sha256 != expected.backbone_sha256,
        f"with stages {', '.join(f'{name} at {um:g} um/px' for name, um in spacings)}": spacings != expected.stages,
        f"with patches of {' and '.join(map(str, sorted(sides)))} px": sides != {expected.patch_px},
        f"at a slide spacing of {header.slide_spacing_um:g} um/px ({header.spacing_source})": (
            override_um != expected.spacing_um
        ),
        f"without {header.patches_left_out} patches": header.patches_left_out > expected.max_missing,
        "with other tissue parameters": header.tissue != expected.tissue,
        f"not as {expected.dtype} of length {expected.dim}": kinds != {(expected.dtype, expected.dim)},
        "with rows that are not a quadtree": any(
            fine.rows != coarse.rows * round(coarse.spacing_um / fine.spacing_um) ** 2
            for coarse, fine in pairwise(stages)
        ),
    }
    return next((difference for difference, differs in differences.items() if differs), None)


def _of_another_slide(header: FeatureHeader) -> str:
    return f"of another slide or of a file that was replaced since ({header.slide_name})"
