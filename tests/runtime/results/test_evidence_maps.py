"""Maps of the evidence for and against a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.results.evidence_maps import draw_evidence_maps, evidence_colours, patch_values
from hagmil.runtime.results.panels import HEADER_PX, MARGIN_PX, Caption
from hagmil.runtime.slides.overview import PANEL_PX, Overview

CAPTION = Caption("a", "tumour  0.900", "tumour 0.900   normal 0.100", "Research use only.")


def _outcome(evidence: list[list[float]], side: int = 200) -> StageOutcome:
    values = np.array(evidence, np.float32)
    patches = values.shape[1]
    coords = np.stack([side * np.arange(patches), np.zeros(patches)], axis=1).astype(np.int64)
    outputs = {"evidence": values, "logits": values.sum(axis=1), "attention": np.zeros(patches, np.float32)}
    geometry = StageGeometry("fine", 0.5, 64, side, 0, 1.0, False)
    return StageOutcome(geometry, coords, outputs, outputs["attention"], np.empty(0, np.int64))


def _overview() -> Overview:
    edges = (np.arange(size + 1, dtype=np.int64) * 10 for size in (100, 60))
    return Overview("a.svs", 0.5, np.full((60, 100, 3), 240, np.uint8), *edges, downsample=10.0)


def _panels(path: Path) -> list[NDArray[np.uint8]]:
    """Both panels, uint8 (height, width, 3)."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    rows = slice(HEADER_PX, HEADER_PX + PANEL_PX * 60 // 100)
    return [pixels[rows, left : left + PANEL_PX] for left in (MARGIN_PX, 2 * MARGIN_PX + PANEL_PX)]


def test_the_value_of_a_patch_is_its_evidence_minus_the_mean_of_the_other_classes() -> None:
    evidence = np.array([[1, 2], [3, 0], [5, -4]], np.float32)
    np.testing.assert_allclose(patch_values(evidence, 0), [1 - 4, 2 - (-2)])
    np.testing.assert_allclose(patch_values(evidence[:2], 1), [2, -2])


def test_colours_are_pale_at_0_and_as_strong_for_as_against() -> None:
    low, quarter, zero, high = evidence_colours(np.array([-4.0, -1.0, 0.0, 4.0]), 4.0).astype(int)
    assert zero.tolist() == [247, 247, 247]
    assert low[2] > low[0]  # blue
    assert high[0] > high[2]  # orange
    np.testing.assert_array_equal(quarter, evidence_colours(np.array([-0.5]), 2.0)[0])


def test_patches_for_the_class_are_orange_on_the_left_and_patches_against_it_blue_on_the_right(tmp_path: Path) -> None:
    (path,) = draw_evidence_maps(tmp_path, _overview(), _outcome([[0, 2], [4, 0]]), ["normal", "tumour"], CAPTION)
    assert path.name == "evidence_tumour.png"
    left, right = _panels(path)
    first, second, beside = (np.s_[40, round(x * PANEL_PX / 1000)] for x in (100, 300, 700))
    orange, pale, blue = evidence_colours(np.array([4.0, 0.0, -2.0]), 4.0)
    for found, colour, share in (
        (left[first], orange, 0.85),
        (left[second], pale, 0.2),
        (right[first], pale, 0.2),
        (right[second], blue, 0.85),
    ):
        np.testing.assert_allclose(found, (1 - share) * 248 + share * colour, atol=1)
    np.testing.assert_array_equal(left[beside], 248)  # not read: grey


def test_each_of_three_classes_has_a_map_with_a_name_that_is_safe(tmp_path: Path) -> None:
    outcome = _outcome([[1, 0], [0, 1], [0, 0]], side=1)  # patches much smaller than a pixel
    paths = draw_evidence_maps(tmp_path, _overview(), outcome, ["a", "b c", "d/e"], CAPTION)
    assert [path.name for path in paths] == ["evidence_a.png", "evidence_b_c.png", "evidence_d_e.png"]
    assert _panels(paths[0])[0][1, 1].tolist() != [248, 248, 248]


@pytest.mark.parametrize("evidence", [[[0.0], [0.0]], [[-1e30], [1e30]]])
def test_evidence_of_any_size_is_drawn(evidence: list[list[float]], tmp_path: Path) -> None:
    (path,) = draw_evidence_maps(tmp_path, _overview(), _outcome(evidence), ["a", "b"], CAPTION)
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_a_model_without_evidence_has_no_map(tmp_path: Path) -> None:
    outcome = _outcome([[1.0], [0.0]])
    del outcome.outputs["evidence"]
    assert draw_evidence_maps(tmp_path, _overview(), outcome, ["a", "b"], CAPTION) == []
