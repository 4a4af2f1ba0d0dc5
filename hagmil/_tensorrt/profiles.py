"""Optimisation profiles: the ranges of shapes that an engine is built for.

A bag of 40,000 patches needs several times the memory of one of 10,000, and an engine's context takes what its profile
may need. So large bags have a profile of their own, and small ones do not pay for them.
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
_MOST_PATCHES = 40_000  # of a stage that reads what tissue there is


@dataclass(frozen=True, slots=True)
class Range:
    """Lengths of one dynamic axis.

    Args:
        minimum: the smallest that the engine takes.
        optimum: the one that it is fastest at.
        maximum: the largest that it takes.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise UsageError(f"a range must rise from 1: min,opt,max, not {self}")

    def __str__(self) -> str:
        return f"{self.minimum},{self.optimum},{self.maximum}"


DEFAULT_BATCH = Range(1, 64, 256)


def parse_range(option: str, text: str) -> Range:
    """Read ``min,opt,max``.

    Args:
        option: the option that it stands in, for the message.
        text: three whole numbers with commas between them.

    Raises:
        UsageError: it is not that.
    """
    try:
        minimum, optimum, maximum = (int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f'{option} "{text}" must be three whole numbers: min,opt,max') from None
    return Range(minimum, optimum, maximum)


def backbone_profile(patch_px: int, batch: Range = DEFAULT_BATCH) -> Profile:
    """The profile of a patch encoder: batches of patches of one size."""
    return {PATCHES.name: _shape_range(batch, (patch_px, patch_px, 3))}


def bag_profiles(features: int, patches: Sequence[Range]) -> tuple[Profile, ...]:
    """Profiles of a stage's model, one for each range of patch counts."""
    return tuple({BAG.name: _shape_range(lengths, (features,))} for lengths in patches)


def patch_ranges(most: int) -> tuple[Range, ...]:
    """The ranges for bags of up to so many patches: one up to 10,000, and one for what is beyond."""
    ordinary = min(most, _ORDINARY_PATCHES)
    ranges = [Range(1, min(ordinary, _OPTIMAL_PATCHES), ordinary)]
    if most > _ORDINARY_PATCHES:
        ranges.append(Range(_ORDINARY_PATCHES + 1, max(_ORDINARY_PATCHES + 1, most // 2), most))
    return tuple(ranges)


def max_patches(manifest: Manifest) -> tuple[int, ...]:
    """For each stage, the most patches that its bags hold.

    The first stage reads what tissue there is, and is given 40,000; each later one reads the children of the patches
    that the one before it kept.
    """
    counts = [_MOST_PATCHES]
    for coarse, fine in pairwise(manifest.stages):
        factor = round(coarse.spacing_um / fine.spacing_um)
        counts.append((coarse.keep or _MOST_PATCHES) * factor**2)
    return tuple(counts)


def bundle_profiles(
    manifest: Manifest, *, batch: Range | None = None, patches: Sequence[Range] = ()
) -> dict[str, tuple[Profile, ...]]:
    """The profiles of every graph of a bundle.

    Args:
        manifest: its patch size, feature length and kept patches decide where nothing else is asked for.
        batch: batches of the backbone; 1, 64, 256 where none are given.
        patches: patch counts of every stage, a profile each; by what the stage may be given where there are none.

    Returns:
        Profiles by the graph's file name; the backbone comes first.
    """
    profiles: dict[str, tuple[Profile, ...]] = {}
    profiles[manifest.backbone.onnx] = (backbone_profile(manifest.patch_px, batch or DEFAULT_BATCH),)
    for stage, most in zip(manifest.stages, max_patches(manifest), strict=True):
        profiles[stage.onnx] = bag_profiles(manifest.backbone.features, patches or patch_ranges(most))
    return profiles


def _shape_range(lengths: Range, fixed: tuple[int, ...]) -> ShapeRange:
    return ShapeRange(
        minimum=(lengths.minimum, *fixed), optimum=(lengths.optimum, *fixed), maximum=(lengths.maximum, *fixed)
    )
