"""The overview of a slide: choice of the level, averaging, reading in blocks, and its edges in level 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hagmil.runtime.slides import overview as overview_module
from hagmil.runtime.slides.overview import average_blocks, pixel_edges, plan_overview
from hagmil.tissue_parameters import TissueParameters
from hagmil.units import Level
from tests.runtime.array_slide import NO_FILTERS, ArraySlide, glass, patterned, tissue_of


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
    monkeypatch.setattr(overview_module, "BLOCK_PX", 40)
    blocks = tissue_of(slide, NO_FILTERS)
    assert len(slide.reads) > 10
    np.testing.assert_array_equal(blocks.mask, whole.mask)


def test_a_wide_slide_with_one_level_is_read_once_in_blocks_of_bounded_size() -> None:
    slide = ArraySlide([glass(2100, 9001)], spacing_um=0.5)
    tissue_of(slide, TissueParameters())
    assert max(width * height for _, _, _, width, height in slide.reads) <= overview_module.BLOCK_PX**2
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
