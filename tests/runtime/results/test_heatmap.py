"""The heatmap shows the regions that each stage read, and their attention."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.results import heatmap
from hagmil.runtime.results.heatmap import Caption, colour_bar_positions, colours_of, draw_heatmap
from hagmil.runtime.results.png import encode_png
from hagmil.runtime.slides.overview import PANEL_PX, Overview


def _outcome(name: str, side: int, coords: list[list[int]], attention: list[float], kept: list[int]) -> StageOutcome:
    geometry = StageGeometry(name, side / 128, 64, side, 0, 1.0, False)
    return StageOutcome(
        geometry, np.array(coords, np.int64), {}, np.array(attention, np.float32), np.array(kept, np.int64)
    )


def _overview(width: int = 100, height: int = 60) -> Overview:
    pixels = np.full((height, width, 3), 240, np.uint8)
    edges = (np.arange(size + 1, dtype=np.int64) * 10 for size in (width, height))
    return Overview("a.svs", 0.5, pixels, *edges, downsample=10.0)


CAPTION = Caption("a", "tumour  0.900", "tumour 0.900   normal 0.100", "Research use only.")


def test_each_stage_has_its_own_part_of_the_colour_bar_and_equal_scores_have_equal_positions() -> None:
    attention = np.array([0.5, -1.0, 3.0, 0.5], np.float32)
    coarse, fine = colour_bar_positions(attention, 0, 2), colour_bar_positions(attention, 1, 2)
    assert coarse.min() == 0
    assert coarse.max() == 0.5 == fine.min()
    assert fine.max() == 1.0
    assert coarse[0] == coarse[3]
    assert list(np.argsort(coarse, kind="stable")) == [1, 0, 3, 2]


def test_the_only_patch_of_a_stage_is_at_the_top_of_its_part() -> None:
    np.testing.assert_allclose(colour_bar_positions(np.array([7.0], np.float32), 0, 2), [0.5])


def test_only_regions_that_were_read_are_coloured(tmp_path: Path) -> None:
    path = tmp_path / "heatmap.png"
    coarse = _outcome("coarse", 200, [[0, 0], [200, 0]], [0.1, 0.9], [1])
    fine = _outcome("fine", 100, [[200, 0], [200, 100], [300, 0], [300, 100]], [0.1, 0.2, 0.3, 0.4], [])
    draw_heatmap(path, _overview(), [coarse, fine], CAPTION)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    panel = pixels[132 : 132 + PANEL_PX * 60 // 100, 2 * 28 + PANEL_PX : 2 * 28 + 2 * PANEL_PX]
    scale = PANEL_PX / 1000
    glass = panel[round(500 * scale), round(900 * scale)]
    best = panel[round(150 * scale), round(350 * scale)]
    expected = 0.38 * 240 + 0.62 * colours_of(np.array([1.0]))[0]
    np.testing.assert_array_equal(glass, 240)
    np.testing.assert_allclose(best, expected, atol=1.0)


@pytest.mark.parametrize("size", [(100, 60), (7, 2000), (3, 2)])
def test_slides_of_any_aspect_ratio_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    outcome = _outcome("only", 40, [[0, 0]], [1.0], [])
    draw_heatmap(tmp_path / "heatmap.png", _overview(*size), [outcome], CAPTION)
    with Image.open(tmp_path / "heatmap.png") as picture:
        assert picture.format == "PNG"
        assert max(picture.size) > PANEL_PX


@pytest.mark.parametrize("scale", [5.3, 16.0, 31.9, 32.0, 50.7])
def test_each_pixel_shows_the_patch_that_covers_it(scale: float) -> None:
    height, width, side = 30, 41, 32
    rng = np.random.default_rng(0)
    cells = rng.permutation(np.argwhere(rng.random((60, 50)) < 0.6))
    outcome = _outcome("only", side, (cells * side).tolist(), [0.0] * len(cells), [])
    expected = np.full((height, width), -1)
    for number, (x, y) in enumerate(outcome.coords.tolist()):
        x0, y0, x1, y1 = (round(corner / scale) for corner in (x, y, x + side, y + side))
        expected[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = number
    np.testing.assert_array_equal(heatmap._patch_of_pixels(outcome, scale, (height, width)), expected)


def test_a_covered_pixel_mixes_its_grey_with_the_colour_of_its_patch() -> None:
    panel = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    outcome = _outcome("only", 4, [[0, 0], [4, 8]], [0.3, 0.1], [])
    found = heatmap._patch_of_pixels(outcome, 1.0, (12, 9))
    expected = panel.astype(float)
    for number, colour in enumerate(colours_of(colour_bar_positions(outcome.attention, 0, 1))):
        grey = panel[found == number].mean(axis=1, keepdims=True)
        expected[found == number] = np.rint((1 - 0.62) * grey + 0.62 * colour)
    np.testing.assert_array_equal(heatmap._heated(panel, [outcome], [found]), expected)


def test_a_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 300, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels[:, ::2]))) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(read), pixels[:, ::2])
