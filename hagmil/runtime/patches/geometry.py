"""Reading at a spacing: which level, and how many of its pixels, make a patch. Plain arithmetic, no file is
touched.

All sides are whole level-0 pixels, and each coarser stage's side is a whole multiple of the next finer one's,
so the quadtree is exact on any pyramid, whatever its levels.

1. The finest stage's ratio of spacings, stage to slide, gives its side in level-0 pixels: ``patch_px`` times
   a whole number where the ratio is within 2 % of it, else ``patch_px`` times the ratio, rounded.
2. A ratio from 0.95 to 1 reads the slide's own pixels; below that the slide is refused, never upsampled.
3. Each coarser stage's side is the next finer stage's, times the ratio of both spacings, a whole number.
4. A stage reads the coarsest level that is no coarser than its pixels, 2 % allowed.
5. Where the side, in that level's pixels, is within 2 % of ``patch_px``, its pixels are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hagmil.errors import SlideRejected, UsageError
from hagmil.units import Level

TOLERANCE = 0.02
"""Spacings closer than this count as equal: a patch is then read as it is stored."""

FINEST_RATIO = 0.95
"""A stage may be finer than the slide's level 0 by this much, and no more."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class StageGeometry:
    """How the patches of one stage lie on one slide.

    Args:
        name: the stage's.
        spacing_um: the stage's, micrometres per patch pixel.
        patch_px: side of a patch as the backbone gets it.
        patch_level0: side of a patch in level-0 pixels.
        level: the level that is read.
        downsample: level-0 pixels per pixel of that level.
        resample: whether the level's pixels must be resampled to the patch's.
    """

    name: str
    spacing_um: float
    patch_px: int
    patch_level0: int
    level: int
    downsample: float
    resample: bool

    @property
    def region_px(self) -> float:
        """Side of a patch in pixels of the level that is read."""
        return self.patch_level0 / self.downsample


def plan_stages(
    slide_levels: Sequence[Level],
    slide_spacing_um: float,
    stage_specs: Sequence[tuple[str, float]],
    patch_px: int,
) -> tuple[StageGeometry, ...]:
    """Lay a model's stages on a slide.

    Args:
        slide_levels: the slide's pyramid, finest first.
        slide_spacing_um: micrometres per level-0 pixel.
        stage_specs: name and spacing (micrometres per patch pixel) of each stage, in any order.
        patch_px: side of a patch as the backbone gets it.

    Returns:
        One geometry a stage, in the order of ``stage_specs``.

    Raises:
        UsageError: no stage, a spacing or size that is not above 0, or spacings whose ratios are not whole
            numbers from 2.
        SlideRejected: the slide is coarser than the finest stage by more than 5 % (code
            ``spacing_too_coarse``).
    """
    _check(slide_levels, slide_spacing_um, stage_specs, patch_px)
    finest_first = sorted(stage_specs, key=lambda spec: spec[1])
    side = _finest_side(slide_spacing_um, *finest_first[0], patch_px)  # steps 1 and 2
    planned = {finest_first[0][0]: _lay(slide_levels, *finest_first[0], patch_px, side)}
    for finer, coarser in pairwise(finest_first):
        side *= _factor(finer, coarser)  # step 3
        planned[coarser[0]] = _lay(slide_levels, *coarser, patch_px, side)
    return tuple(planned[name] for name, _ in stage_specs)


def finest_ratio(slide_spacing_um: float, stage_specs: Sequence[tuple[str, float]]) -> float:
    """The finest stage's spacing over the slide's; below 1 the patches are coarser than asked for."""
    return min(spacing_um for _, spacing_um in stage_specs) / slide_spacing_um


def _check(levels: Sequence[Level], slide_spacing_um: float, specs: Sequence[tuple[str, float]], patch_px: int) -> None:
    if not levels or not specs:
        raise UsageError("a plan needs at least one level and one stage")
    if patch_px < 1:
        raise UsageError(f"patch_px must be at least 1, not {patch_px}")
    for what, spacing_um in [("the slide", slide_spacing_um), *((f"stage {name}", um) for name, um in specs)]:
        if not (math.isfinite(spacing_um) and spacing_um > 0):
            raise UsageError(f"{what}: the spacing must be a number above 0 um/px, not {spacing_um}")
    if len({name for name, _ in specs}) != len(specs):
        raise UsageError("two stages have the same name")


def _finest_side(slide_spacing_um: float, name: str, spacing_um: float, patch_px: int) -> int:
    ratio = spacing_um / slide_spacing_um
    if ratio < FINEST_RATIO - _ROUNDING:
        raise SlideRejected(
            f"the slide has {slide_spacing_um:.4g} um/px, too coarse for stage {name} at {spacing_um:.4g}; "
            "use a scan of higher magnification, or a model made for this spacing",
            code="spacing_too_coarse",
        )
    multiple = max(1, round(ratio))
    if ratio < 1 or abs(ratio / multiple - 1) <= TOLERANCE + _ROUNDING:
        return patch_px * multiple
    return round(patch_px * ratio)


def _factor(finer: tuple[str, float], coarser: tuple[str, float]) -> int:
    ratio = coarser[1] / finer[1]
    factor = round(ratio)
    if factor < 2 or abs(ratio / factor - 1) > TOLERANCE + _ROUNDING:
        raise UsageError(
            f"stages {coarser[0]} ({coarser[1]:.4g} um/px) and {finer[0]} ({finer[1]:.4g} um/px) make no "
            f"quadtree: the ratio of their spacings is {ratio:.4g} and must be a whole number from 2"
        )
    return factor


def _lay(levels: Sequence[Level], name: str, spacing_um: float, patch_px: int, side: int) -> StageGeometry:
    wanted = side / patch_px
    fitting = [level for level in levels if level.downsample <= wanted * (1 + TOLERANCE) + _ROUNDING]
    level = max(fitting, key=lambda candidate: candidate.downsample)  # step 4: level 0 always fits
    region_px = side / level.downsample
    return StageGeometry(
        name=name,
        spacing_um=spacing_um,
        patch_px=patch_px,
        patch_level0=side,
        level=level.index,
        downsample=level.downsample,
        resample=abs(region_px / patch_px - 1) > TOLERANCE + _ROUNDING,  # step 5
    )
