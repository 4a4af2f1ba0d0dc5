"""The overview of a slide: choice of the level, averaging, reading in blocks, and its edges in level 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hagmil.runtime.slides import level_means
from hagmil.runtime.slides.level_means import average_blocks
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.overview import (
    Overview,
    picture_of,
    pixel_edges,
    plan_overview,
    read_overview,
    read_overview_and_picture,
)
from hagmil.runtime.slides.slide import Slide
from hagmil.tissue_parameters import TissueParameters
from hagmil.units import Level
from tests.runtime.array_slide import NO_FILTERS, ArraySlide, glass, patterned, tissue_of
from tests.runtime.slide_files import picture, save_pyramid


def levels_of(*downsamples: float) -> tuple[Level, ...]:
    return tuple(Level(i, round(64000 / d), round(48000 / d), d) for i, d in enumerate(downsamples))


@pytest.mark.parametrize(
    ("downsamples", "spacing_um", "level", "group_px"),
    [
        ((1, 2, 4, 8, 16, 32, 64), 0.25, 5, 1),  # every power of two: one level matches exactly
        ((1, 4, 16), 0.25, 2, 2),  # Aperio: 4 um/px is the nearest finer level
        ((1, 4.0002, 32.3), 0.25, 2, 1),  # 8.075 um/px is within 2 %
        ((1, 4.0002, 33), 0.25, 1, 8),  # 8.25 um/px is not
        ((1,), 0.5, 0, 16),  # one level only
        ((1,), 0.499, 0, 16),
        ((1, 4), 10.0, 0, 1),  # no level is fine enough: level 0, not upsampled
        ((1, 2), 7.9, 0, 1),
    ],
)
def test_the_nearest_finer_level_is_read_and_whole_pixels_are_averaged(
    downsamples: tuple[float, ...], spacing_um: float, level: int, group_px: int
) -> None:
    chosen, group = plan_overview(levels_of(*downsamples), spacing_um, 8.0)
    assert (chosen.index, group) == (level, group_px)


@given(
    rgb=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    group_px=st.integers(1, 11),
)
def test_pixels_are_averaged_in_squares_that_are_smaller_at_the_edges(rgb: NDArray[np.uint8], group_px: int) -> None:
    result = average_blocks(rgb, group_px)
    height, width, _ = rgb.shape
    assert result.shape == (-(-height // group_px), -(-width // group_px), 3)
    for row, column in np.ndindex(*result.shape[:2]):
        square = rgb[row * group_px :, column * group_px :][:group_px, :group_px]
        mean = square.reshape(-1, 3).mean(axis=0)
        np.testing.assert_array_equal(result[row, column], np.floor(mean + 0.5))


@pytest.mark.parametrize("spacing_um", [8.0, 2.0, 0.7])
def test_reading_in_blocks_gives_the_same_mask_as_one_read(spacing_um: float, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = ArraySlide([patterned(150, 131)], spacing_um=spacing_um)
    whole = tissue_of(slide, NO_FILTERS)
    assert len(slide.reads) == 1
    assert whole.mask.any()
    monkeypatch.setattr(level_means, "BLOCK_PX", 40)
    blocks = tissue_of(slide, NO_FILTERS)
    assert len(slide.reads) > 10
    np.testing.assert_array_equal(blocks.mask, whole.mask)


def test_a_wide_slide_with_one_level_is_read_once_in_blocks_of_bounded_size() -> None:
    slide = ArraySlide([glass(2100, 9001)], spacing_um=0.5)
    tissue_of(slide, TissueParameters())
    assert max(width * height for _, _, _, width, height in slide.reads) <= level_means.BLOCK_PX**2
    read = np.zeros((2100, 9001), dtype=np.uint8)
    for _, x, y, width, height in slide.reads:
        assert x + width <= 9001
        assert y + height <= 2100
        read[y : y + height, x : x + width] += 1
    assert (read == 1).all()


def test_only_the_coarse_level_of_a_pyramid_is_read() -> None:
    levels = [glass(640, 480), glass(160, 120), glass(40, 30)]
    slide = ArraySlide(levels, spacing_um=0.5)
    mask = tissue_of(slide, TissueParameters())
    assert {read[0] for read in slide.reads} == {2}
    assert mask.mask.shape == (40, 30)
    assert (mask.downsample, mask.spacing_um) == (16.0, 8.0)


@given(level0_px=st.integers(1, 5000), ratio=st.floats(1.0, 40.0), group_px=st.integers(1, 20))
def test_edges_increase_from_zero_to_the_extent_of_the_slide(level0_px: int, ratio: float, group_px: int) -> None:
    level_px = max(1, round(level0_px / ratio))
    edges = pixel_edges(level0_px, level_px, group_px)
    assert (edges[0], edges[-1]) == (0, level0_px)
    assert len(edges) == -(-level_px // group_px) + 1
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize(("tile_px", "groups_px"), [(64, (1,)), (48, (4,)), (64, (3, 2)), (64, (8, 2))])
def test_encoded_tiles_give_the_means_of_the_regions_of_the_slide(
    tile_px: int, groups_px: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_pyramid(tmp_path / "a.tif", picture(201, 150), tile_px=tile_px, pyramid=False)
    monkeypatch.setattr(level_means, "BLOCK_PX", 100)
    with open_slide(path) as slide:
        whole = slide.read_region(0, 0, 0, 201, 150)
        monkeypatch.setattr(slide, "read_region", None)
        found = level_means.read_means(slide, slide.levels[0], groups_px)
    for group_px, means in zip(groups_px, found, strict=True):
        np.testing.assert_array_equal(means, average_blocks(whole, group_px))


@pytest.mark.parametrize(
    ("widths", "spacing_um", "level", "group_px", "further_reads"),
    [
        ((500,), 0.5, 0, 1, 0),  # all of the level that the overview averages
        ((1500, 750), 0.5, 1, 1, 0),
        ((1500, 375, 94), 0.5, 0, 2, 1),  # a finer level than that of the overview
        ((1500,), 8.0, 0, 2, 0),  # the overview is large enough
        ((710,), 8.0, 0, 1, 0),  # no level is finer
    ],
)
def test_the_picture_is_read_again_only_if_it_needs_a_finer_level(
    widths: tuple[int, ...], spacing_um: float, level: int, group_px: int, further_reads: int
) -> None:
    slide = ArraySlide([patterned(round(0.064 * width), width) for width in widths], spacing_um=spacing_um)
    overview, together = read_overview_and_picture(_as_slide(slide), 8.0)
    reads = len(slide.reads)
    drawn = together or picture_of(_as_slide(slide), overview)
    assert drawn.downsample == slide.levels[level].downsample * group_px
    assert (reads, len(slide.reads) - reads) == (1, further_reads)
    _require_same(overview, read_overview(_as_slide(slide), 8.0))
    _require_same(drawn, read_overview(_as_slide(slide), drawn.spacing_um))


def _as_slide(slide: ArraySlide) -> Slide:
    return slide  # type: ignore[return-value]


def _require_same(first: Overview, second: Overview) -> None:
    for name in ("pixels", "column_edges", "row_edges"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.downsample, first.spacing_um) == (second.downsample, second.spacing_um)
