"""Optimisation profiles: the ranges of input shapes that an engine is built for.

An execution context allocates memory for the largest shape of its profile, and a bag of 40,000 patches needs several
times the memory of one of 10,000. Therefore large bags have a separate profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hagmil.bundle import Manifest, Profile, ShapeRange
from hagmil.errors import UsageError
from hagmil.spec import BAG, PATCHES

_ORDINARY_PATCHES = 10_000
_OPTIMAL_PATCHES = 3_000
_MAX_PATCHES = 40_000  # of the first stage, which reads all tissue


@dataclass(frozen=True, slots=True)
class Range:
    """Range of lengths of one dynamic axis.

    Args:
        minimum: smallest length that the engine accepts.
        optimum: length that the engine is optimised for.
        maximum: largest length that the engine accepts.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise UsageError(f"invalid range {self}: write min,opt,max with 1 <= min <= opt <= max")

    def __str__(self) -> str:
        return f"{self.minimum},{self.optimum},{self.maximum}"


DEFAULT_BATCH = Range(1, 64, 256)


def parse_range(option: str, text: str) -> Range:
    """Parse ``min,opt,max``.

    Args:
        option: name of the option, for the error message.
        text: three integers separated by commas.

    Raises:
        UsageError: the text has another form.
    """
    try:
        minimum, optimum, maximum = (int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f'{option} "{text}" must be three integers: min,opt,max') from None
    return Range(minimum, optimum, maximum)


def backbone_profile(patch_px: int, batch: Range = DEFAULT_BATCH) -> Profile:
    """Return the profile of a backbone: batches of patches of one size."""
    return {PATCHES.name: _shape_range(batch, (patch_px, patch_px, 3))}


def bag_profiles(features: int, patches: Sequence[Range]) -> tuple[Profile, ...]:
    """Return the profiles of a stage model, one for each range of bag sizes."""
    return tuple({BAG.name: _shape_range(lengths, (features,))} for lengths in patches)


def patch_ranges(largest: int) -> tuple[Range, ...]:
    """Return the ranges for bags of up to ``largest`` patches: up to 10,000, and above if needed."""
    ordinary = min(largest, _ORDINARY_PATCHES)
    ranges = [Range(1, min(ordinary, _OPTIMAL_PATCHES), ordinary)]
    if largest > _ORDINARY_PATCHES:
        ranges.append(Range(_ORDINARY_PATCHES + 1, max(_ORDINARY_PATCHES + 1, largest // 2), largest))
    return tuple(ranges)


def max_patches(manifest: Manifest) -> tuple[int, ...]:
    """Return the maximum bag size of each stage.

    The first stage reads all tissue, for which 40,000 patches are assumed. Every other stage reads the children of the
    patches that the previous stage keeps, in an ordinary or in an adaptive run.
    """
    counts = [_MAX_PATCHES]
    adaptive = max(manifest.certainty.keeps) if manifest.certainty else 0
    for coarse, fine in pairwise(manifest.stages):
        factor = round(coarse.spacing_um / fine.spacing_um)
        counts.append(max(coarse.keep or _MAX_PATCHES, adaptive) * factor**2)
    return tuple(counts)


def bundle_profiles(
    manifest: Manifest, *, batch: Range | None = None, patches: Sequence[Range] = ()
) -> dict[str, tuple[Profile, ...]]:
    """Return the profiles of every graph of a bundle.

    Args:
        manifest: gives patch size, feature length and numbers of kept patches.
        batch: batch sizes of the backbone; None for 1, 64, 256.
        patches: bag sizes of every stage, one profile each; if empty, derived from the manifest.

    Returns:
        Profiles by file name of the graph, the backbone first.
    """
    profiles: dict[str, tuple[Profile, ...]] = {}
    profiles[manifest.backbone.onnx] = (backbone_profile(manifest.patch_px, batch or DEFAULT_BATCH),)
    for stage, largest in zip(manifest.stages, max_patches(manifest), strict=True):
        profiles[stage.onnx] = bag_profiles(manifest.backbone.features, patches or patch_ranges(largest))
    return profiles


def _shape_range(lengths: Range, fixed: tuple[int, ...]) -> ShapeRange:
    return ShapeRange(
        minimum=(lengths.minimum, *fixed), optimum=(lengths.optimum, *fixed), maximum=(lengths.maximum, *fixed)
    )
