"""Laying out a slide: the stages' geometry, the tissue mask, and the coarsest stage's grid over tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hagmil.errors import SlideRejected
from hagmil.runtime.patches.geometry import plan_stages
from hagmil.runtime.patches.plan import lay_out, require_tissue
from hagmil.runtime.patches.quadtree import coarse_grid
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.overview import read_overview
from hagmil.runtime.tissue.segment import find_tissue
from hagmil.tissue_parameters import TissueParameters
from tests.runtime.slide_files import save_pyramid

STAGES = [("coarse", 2.0), ("middle", 1.0), ("fine", 0.5)]
TISSUE = TissueParameters()


def test_layout_has_the_grid_over_tissue_at_the_coarsest_stage(tissue_path: Path) -> None:
    with open_slide(tissue_path) as slide:
        layout = lay_out(slide, STAGES, 16, TISSUE)
        overview = read_overview(slide, TISSUE.spacing_um)
        mask = find_tissue(overview, TISSUE)
        assert layout.plan == plan_stages(slide.levels, 0.5, STAGES, 16)
        np.testing.assert_array_equal(layout.overview.pixels, overview.pixels)
        np.testing.assert_array_equal(layout.mask.mask, mask.mask)
        np.testing.assert_array_equal(layout.coords, coarse_grid(slide.size, 64, mask, TISSUE.min_share))
    assert len(layout.coords) > 0
    require_tissue(layout)


def test_slide_without_tissue_has_no_patches_and_is_rejected_if_tissue_is_required(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "glass.tif", np.full((600, 600, 3), 245, np.uint8))
    with open_slide(path) as slide:
        layout = lay_out(slide, STAGES, 16, TISSUE)
    assert layout.coords.shape == (0, 2)
    with pytest.raises(SlideRejected, match=r"glass\.tif.*no tissue") as caught:
        require_tissue(layout)
    assert caught.value.code == "no_tissue"


def test_slide_that_is_too_coarse_for_a_stage_is_rejected_by_name(tissue_path: Path) -> None:
    with (
        open_slide(tissue_path) as slide,
        pytest.raises(SlideRejected, match=r'slide "tissue\.tif": .*too coarse') as caught,
    ):
        lay_out(slide, [("fine", 0.25)], 16, TISSUE)
    assert caught.value.code == "spacing_too_coarse"


def test_slide_without_spacing_is_rejected(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "a.tif", np.full((600, 600, 3), 245, np.uint8), spacing_um=None)
    with open_slide(path) as slide, pytest.raises(SlideRejected, match=r"a\.tif.*--spacing-um") as caught:
        lay_out(slide, STAGES, 16, TISSUE)
    assert caught.value.code == "spacing_missing"
