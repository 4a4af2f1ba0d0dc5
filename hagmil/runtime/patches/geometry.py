"""The geometry of stages on a slide: the size of a patch in level-0 pixels, and the level that it is read from.

All sides are whole numbers of level-0 pixels, and the side of each stage is a whole multiple of the next finer stage's.
The quadtree is therefore exact on every pyramid. This module is arithmetic only and reads no files.

1. The side of the finest stage's patches follows from the ratio of the stage's spacing to the slide's. If the ratio is
   within 2 % of a whole number, the side is ``patch_px`` times this number, else ``patch_px`` times the ratio, rounded.
2. If the ratio is between 0.95 and 1, patches are the slide's own pixels. If it is lower, the slide is rejected, since
   patches are never upsampled.
3. The side of each coarser stage is the side of the next finer stage times the ratio of their spacings, a whole number.
4. A stage reads the coarsest level that is at most 2 % coarser than its patches.
5. If the side, in pixels of this level, is within 2 % of ``patch_px``, its pixels are used without resampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hagmil.errors import SlideRejected, UsageError
from hagmil.units import Level

TOLERANCE = 0.02
"""Spacings whose ratio differs from 1 by no more than this are treated as equal, and patches are not resampled."""

FINEST_RATIO = 0.95
"""The smallest ratio of the finest stage's spacing to the slide's."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class StageGeometry:
    """The geometry of one stage's patches on one slide.

    Args:
        name: name of the stage.
        spacing_um: spacing of the stage, micrometres per pixel of a patch.
        patch_px: side of a patch in pixels, as input to the backbone.
        patch_level0: side of a patch in level-0 pixels.
        level: index of the level that is read.
        downsample: level-0 pixels per pixel of this level.
        resample: whether the pixels of this level must be resampled.
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
    """Compute the geometry of a model's stages on a slide.

    Args:
        slide_levels: the slide's pyramid, finest level first.
        slide_spacing_um: micrometres per level-0 pixel.
        stage_specs: name and spacing (micrometres per pixel of a patch) of each stage, in any order.
        patch_px: side of a patch in pixels, as input to the backbone.

    Returns:
        One geometry per stage, in the order of ``stage_specs``.

    Raises:
        UsageError: there is no stage, a spacing or size is not above 0, or a ratio of spacings is not a whole number
            of at least 2.
        SlideRejected: the slide is more than 5 % coarser than the finest stage (code ``spacing_too_coarse``).
    """
    _check(slide_levels, slide_spacing_um, stage_specs, patch_px)
    finest_first = sorted(stage_specs, key=lambda spec: spec[1])
    side = _finest_side(slide_spacing_um, *finest_first[0], patch_px)  # steps 1 and 2
    planned = {finest_first[0][0]: _stage_geometry(slide_levels, *finest_first[0], patch_px, side)}
    for finer, coarser in pairwise(finest_first):
        side *= _factor(finer, coarser)  # step 3
        planned[coarser[0]] = _stage_geometry(slide_levels, *coarser, patch_px, side)
    return tuple(planned[name] for name, _ in stage_specs)


def finest_ratio(slide_spacing_um: float, stage_specs: Sequence[tuple[str, float]]) -> float:
    """Return the finest stage's spacing divided by the slide's. Below 1, patches are coarser than requested."""
    return min(spacing_um for _, spacing_um in stage_specs) / slide_spacing_um


def _check(levels: Sequence[Level], slide_spacing_um: float, specs: Sequence[tuple[str, float]], patch_px: int) -> None:
    if not levels or not specs:
        raise UsageError("planning needs at least one level and one stage")
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
            f"the slide has {slide_spacing_um:.4g} um/px, too coarse for stage {name} at {spacing_um:.4g} um/px; "
            "use a scan of higher magnification, or a model for this spacing",
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
            f"stages {coarser[0]} ({coarser[1]:.4g} um/px) and {finer[0]} ({finer[1]:.4g} um/px) do not form a "
            f"quadtree: the ratio of their spacings is {ratio:.4g}, but must be a whole number of at least 2"
        )
    return factor


def _stage_geometry(levels: Sequence[Level], name: str, spacing_um: float, patch_px: int, side: int) -> StageGeometry:
    downsample = side / patch_px
    fitting = [level for level in levels if level.downsample <= downsample * (1 + TOLERANCE) + _ROUNDING]
    level = max(fitting, key=lambda candidate: candidate.downsample)  # step 4; level 0 always qualifies
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
