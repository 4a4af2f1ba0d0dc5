"""Lay out a slide: the geometry of every stage, the tissue mask, and the coarsest stage's grid over tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Manifest
from hagmil.errors import SlideRejected
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.patches.missing_tiles import without_missing
from hagmil.runtime.patches.quadtree import coarse_grid
from hagmil.runtime.slides.overview import Overview, read_overview, read_overview_and_picture
from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.runtime.tissue.kernels import MaskKernels
from hagmil.runtime.tissue.mask import TissueMask
from hagmil.runtime.tissue.segment import find_tissue
from hagmil.tissue_parameters import TissueParameters


@dataclass(frozen=True, slots=True, eq=False)
class SlideLayout:
    """A slide laid out for a sequence of stages.

    Args:
        plan: geometry of every stage, in the order of the stages.
        overview: the slide at the spacing of the tissue mask.
        mask: the tissue mask.
        coords: int64 (patches, 2), level-0 top-left corners (x, y) of the first stage's patches; (0, 2) if the slide
            has no tissue.
        picture: the picture of the slide, if it was requested and read together with the overview.
        left_out: number of patches of the first stage that were left out because tiles have no bytes.
    """

    plan: tuple[StageGeometry, ...]
    overview: Overview
    mask: TissueMask
    coords: NDArray[np.int64]
    picture: Overview | None = None
    left_out: int = 0


def lay_out(
    slide: Slide,
    stages: Sequence[tuple[str, float]],
    patch_px: int,
    tissue: TissueParameters,
    kernels: MaskKernels | None = None,
    *,
    max_missing: int = 0,
    picture: bool = False,
) -> SlideLayout:
    """Plan the stages on a slide, find its tissue, and lay the coarsest stage's grid over the tissue.

    Args:
        slide: an open slide.
        stages: name and spacing (micrometres per pixel) of every stage, coarse to fine.
        patch_px: side of a patch in pixels.
        tissue: parameters of the tissue mask, and the least share of a patch that must be tissue.
        kernels: implementation of the mask's operations; None chooses one by the size of the mask.
        max_missing: number of the coarsest stage's patches that may be left out, with a warning, because tiles of
            tissue have no bytes in the file.
        picture: whether to read the picture of the slide together with the overview, if both come from one level.

    Returns:
        The layout, without patches if the slide has no tissue; see :func:`require_tissue`.

    Raises:
        SlideRejected: the slide gives no spacing (code ``spacing_missing``), is too coarse for a stage
            (``spacing_too_coarse``), or is not brightfield (``not_brightfield``).
        SlideFailed: the slide cannot be read, or tiles of tissue have no bytes (``tile_missing``).
    """
    plan = _plan(slide, stages, patch_px)
    if picture:
        overview, finer = read_overview_and_picture(slide, tissue.spacing_um)
    else:
        overview, finer = read_overview(slide, tissue.spacing_um), None
    mask = find_tissue(overview, tissue, kernels)
    coords = coarse_grid(slide.size, plan[0].patch_level0, mask, tissue.min_share)
    whole = without_missing(slide, plan, overview, mask, coords, max_missing=max_missing, kernels=kernels)
    return SlideLayout(plan, overview, mask, whole, finer, left_out=len(coords) - len(whole))


def require_tissue(layout: SlideLayout) -> None:
    """Check that the layout has patches.

    Raises:
        SlideRejected: the slide has no tissue (code ``no_tissue``).
    """
    if len(layout.coords) == 0:
        raise SlideRejected(f'slide "{layout.overview.slide_name}" shows no tissue', code="no_tissue")


def stage_specs(manifest: Manifest) -> list[tuple[str, float]]:
    """Return the name and spacing (micrometres per pixel) of a bundle's stages, coarse to fine."""
    return [(stage.name, stage.spacing_um) for stage in manifest.stages]


def _plan(slide: Slide, stages: Sequence[tuple[str, float]], patch_px: int) -> tuple[StageGeometry, ...]:
    spacing_um = require_spacing(slide)
    try:
        return plan_stages(slide.levels, spacing_um, stages, patch_px)
    except SlideRejected as error:
        raise SlideRejected(f'slide "{slide.path.name}": {error.message}', code=error.code) from error
