"""Which patches a slide is read at: the stages laid on its levels, and the coarsest stage's grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Manifest
from hagmil.errors import SlideRejected
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.patches.quadtree import coarse_grid
from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.runtime.tissue.segment import TissueMask


def first_candidates(slide: Slide, mask: TissueMask, geometry: StageGeometry, min_share: float) -> NDArray[np.int64]:
    """The coarsest stage's patches: the quadtree's cells that hold enough tissue (step 1).

    Args:
        slide: an open slide.
        mask: its tissue.
        geometry: of the coarsest stage.
        min_share: the least share of a cell that is tissue.

    Returns:
        int64 (patches, 2), level-0 top-left corners (x, y).

    Raises:
        SlideRejected: the slide shows no tissue (code ``no_tissue``).
    """
    coords = coarse_grid(slide.size, geometry.patch_level0, mask, min_share)
    if len(coords) == 0:
        raise SlideRejected(f'slide "{slide.path.name}" shows no tissue', code="no_tissue")
    return coords


def plan_slide(slide: Slide, stages: Sequence[tuple[str, float]], patch_px: int) -> tuple[StageGeometry, ...]:
    """Lay stages on one slide.

    Args:
        slide: an open slide.
        stages: name and spacing in micrometres per pixel of every stage, coarse to fine.
        patch_px: side of a patch in pixels.

    Raises:
        SlideRejected: the slide gives no spacing, or is too coarse for a stage.
    """
    spacing_um = require_spacing(slide)
    try:
        return plan_stages(slide.levels, spacing_um, stages, patch_px)
    except SlideRejected as error:
        raise SlideRejected(f'slide "{slide.path.name}": {error.message}', code=error.code) from error


def stage_specs(manifest: Manifest) -> list[tuple[str, float]]:
    """Name and spacing of a bundle's stages, coarse to fine."""
    return [(stage.name, stage.spacing_um) for stage in manifest.stages]
