"""Reading patches: unchanged pixels, exact means, resampling without seams, and white outside the slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.patches import reader as patch_reader
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.patches.reader import SlidePatchReader, read_into, read_patch
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide
from tests.runtime.slide_files import picture, save_pyramid

PATCH_PX = 32


def geometry_of(slide: Slide, stage_um: float, patch_px: int = PATCH_PX) -> StageGeometry:
    assert slide.spacing_um is not None
    return plan_stages(slide.levels, slide.spacing_um, [("only", stage_um)], patch_px)[0]


def padded(pixels: NDArray[np.uint8], x: int, y: int, side: int) -> NDArray[np.uint8]:
    """Cut a square from a picture, white outside it."""
    frame = np.pad(pixels, ((3000, 3000), (3000, 3000), (0, 0)), constant_values=255)
    return frame[y + 3000 : y + 3000 + side, x + 3000 : x + 3000 + side]


@pytest.mark.parametrize(("x", "y"), [(0, 0), (64, 32), (-16, 8), (400, 290), (2000, -50)])
def test_a_patch_at_the_slides_spacing_has_the_slides_pixels(
    exact_path: Path, pixels: NDArray[np.uint8], x: int, y: int
) -> None:
    with open_slide(exact_path) as slide:
        patch = read_patch(slide, geometry_of(slide, 0.5), x, y)
    assert (patch == padded(pixels, x, y, 32)).all()


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (96, 64), (-40, 200), (390, 10)])
def test_a_patch_at_a_whole_ratio_of_spacings_is_the_mean_of_the_slides_pixels(
    exact_path: Path, pixels: NDArray[np.uint8], factor: int, x: int, y: int
) -> None:
    with open_slide(exact_path) as slide:
        patch = read_patch(slide, geometry_of(slide, 0.5 * factor), x, y)
    square = padded(pixels, x, y, 32 * factor).astype(float)
    mean = square.reshape(32, factor, 32, factor, 3).mean(axis=(1, 3))  # (rows, factor, columns, factor, 3)
    assert np.abs(patch - mean).max() <= 0.6


@pytest.mark.parametrize("stage_um", [0.5, 0.7, 1.0, 1.5, 2.3])
def test_a_slide_in_strips_has_the_same_patches(
    tmp_path: Path, exact_path: Path, pixels: NDArray[np.uint8], stage_um: float
) -> None:
    path = save_pyramid(tmp_path / "strips.tif", pixels, compression="lzw", tiled=False, pyramid=False)
    with open_slide(path) as strips, open_slide(exact_path) as tiled:
        geometry = geometry_of(strips, stage_um)
        patch = read_patch(strips, geometry, 64, 32)  # entirely inside the slide: a view of the decoded pixels
        assert (patch == read_patch(tiled, geometry, 64, 32)).all()


@pytest.mark.parametrize("factor", [4, 8])
def test_reading_in_bands_changes_nothing(exact_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    with open_slide(exact_path) as slide:
        geometry = geometry_of(slide, 0.5 * factor)
        whole = read_patch(slide, geometry, 30, 20)
        monkeypatch.setattr(patch_reader, "_BAND_PIXELS", 32 * factor * factor * 5)
        assert (read_patch(slide, geometry, 30, 20) == whole).all()
        monkeypatch.setattr(patch_reader, "_BAND_PIXELS", 1)
        assert (read_patch(slide, geometry, 30, 20) == whole).all()


def test_a_level_at_the_stages_spacing_is_read_without_resampling(pyramid_path: Path) -> None:
    with open_slide(pyramid_path) as slide:
        geometry = geometry_of(slide, 2.0)
        assert (geometry.level, geometry.resample) == (2, False)
        patch = read_patch(slide, geometry, 128, 64)
        assert (patch == slide.read_region(2, 32, 16, 32, 32)).all()


@pytest.mark.parametrize("stage_um", [0.7, 0.8, 1.1, 1.7, 2.3, 3.3])
def test_other_ratios_are_resampled_with_antialiasing(
    exact_path: Path, pixels: NDArray[np.uint8], stage_um: float
) -> None:
    with open_slide(exact_path) as slide:
        geometry = geometry_of(slide, stage_um)
        patch = read_patch(slide, geometry, 64, 32)
    assert geometry.resample
    side = geometry.patch_level0
    expected = Image.fromarray(pixels).resize(
        (PATCH_PX, PATCH_PX), Image.Resampling.BILINEAR, box=(64, 32, 64 + side, 32 + side)
    )
    difference = np.abs(patch.astype(int) - np.asarray(expected))
    assert difference.max() <= (1 if stage_um < 2 else 6)  # above a ratio of 4, pixels are averaged first


@pytest.mark.parametrize("stage_um", [0.8, 1.7, 2.3, 3.3])
def test_adjacent_patches_have_no_seam(exact_path: Path, stage_um: float) -> None:
    with open_slide(exact_path) as slide:
        single, double = geometry_of(slide, stage_um), geometry_of(slide, stage_um, 2 * PATCH_PX)
        side = single.patch_level0
        if double.patch_level0 != 2 * side:
            double = StageGeometry(double.name, stage_um, 2 * PATCH_PX, 2 * side, single.level, single.downsample, True)
        whole = read_patch(slide, double, 0, 0).astype(int)
        for row in range(2):
            for column in range(2):
                part = read_patch(slide, single, column * side, row * side)
                there = whole[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
                assert np.abs(part - there).max() <= 1


def test_a_uniform_colour_is_unchanged_at_every_spacing(tmp_path: Path) -> None:
    flat = np.full((400, 500, 3), (200, 90, 150), np.uint8)
    path = save_pyramid(tmp_path / "a.tif", flat, compression="deflate", tile_px=64)
    with open_slide(path) as slide:
        for stage_um in (0.5, 0.6, 0.95, 1.0, 1.3, 1.9, 2.0, 2.7, 4.0):
            assert (read_patch(slide, geometry_of(slide, stage_um), 16, 48) == (200, 90, 150)).all()


@pytest.mark.parametrize("stage_um", [0.5, 0.8, 1.0, 1.7, 2.3, 4.0])
@pytest.mark.parametrize(("x", "y"), [(-100_000, 0), (0, 100_000), (5000, 5000)])
def test_a_patch_outside_the_slide_is_white(pyramid_path: Path, stage_um: float, x: int, y: int) -> None:
    with open_slide(pyramid_path) as slide:
        assert (read_patch(slide, geometry_of(slide, stage_um), x, y) == 255).all()


def test_a_patch_is_nearly_the_same_from_any_level(tmp_path: Path) -> None:
    picture_px = picture(640, 640, seed=2)
    many = save_pyramid(tmp_path / "many.tif", picture_px, compression="deflate")
    one = save_pyramid(tmp_path / "one.tif", picture_px, compression="deflate", pyramid=False)
    with open_slide(many) as slide, open_slide(one) as flat:
        for stage_um in (1.0, 1.2, 2.0, 3.1):
            from_levels = read_patch(slide, geometry_of(slide, stage_um), 64, 128).astype(float)
            from_finest = read_patch(flat, geometry_of(flat, stage_um), 64, 128)
            assert np.abs(from_levels - from_finest).mean() < 3


def test_patches_are_read_in_the_order_of_their_coordinates(exact_path: Path) -> None:
    coords = np.array([[64, 32], [0, 0], [-8, 290], [64, 32]], np.int64)
    with open_slide(exact_path) as slide:
        geometry = geometry_of(slide, 1.0)
        out = np.zeros((4, PATCH_PX, PATCH_PX, 3), np.uint8)
        read_into(slide, geometry, coords, out)
        for row, (x, y) in enumerate(coords.tolist()):
            assert (out[row] == read_patch(slide, geometry, x, y)).all()
        again = np.zeros_like(out)
        reader = SlidePatchReader(slide, geometry)
        reader.read_into(coords, again)
        reader.close()
    assert (again == out).all()


def test_reading_no_patches_is_allowed(exact_path: Path) -> None:
    with open_slide(exact_path) as slide:
        read_into(slide, geometry_of(slide, 1.0), np.empty((0, 2), np.int64), np.empty((0, 32, 32, 3), np.uint8))


def test_an_array_of_another_shape_is_an_error(exact_path: Path) -> None:
    with open_slide(exact_path) as slide, pytest.raises(ValueError, match="shape"):
        read_into(slide, geometry_of(slide, 1.0), np.zeros((2, 2), np.int64), np.empty((2, 16, 16, 3), np.uint8))
