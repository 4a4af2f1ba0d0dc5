"""The benchmark of tissue masks: all implementations make the same mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import masks

GLASS, STROMA = (243, 242, 244), (210, 150, 190)


@pytest.fixture
def picture() -> masks.Image:
    rgb = np.empty((90, 120, 3), np.uint8)
    rgb[:] = GLASS
    rgb[10:60, 20:90] = STROMA
    rgb[30:36, 40:46] = GLASS  # a small hole
    rgb[70:74, 100:104] = STROMA  # a small object
    return rgb


@pytest.mark.parametrize("method", masks.METHODS)
@pytest.mark.parametrize("task", masks.TASKS)
def test_our_implementations_make_the_same_mask(task: str, method: str, picture: masks.Image) -> None:
    plain = masks.plain(task, method)(picture)
    assert 0 < plain.sum() < plain.size
    np.testing.assert_array_equal(masks.compiled(task, method)(picture), plain)
    np.testing.assert_array_equal(masks.compiled_one_core(task, method)(picture), plain)


def test_libvips_gives_the_same_filters_except_at_edges(picture: masks.Image) -> None:
    np.testing.assert_array_equal(masks.libvips("filters", "fixed")(picture), masks.plain("filters", "fixed")(picture))


def test_a_measurement_gives_times_and_the_share_of_tissue(picture: masks.Image, tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", picture)
    found = masks.measure("plain", "mask", "fixed", str(tmp_path / "picture.npy"))
    # the hole is filled, the small object is removed, and the median rounds off three pixels at each corner
    assert found["tissue"] == (50 * 70 - 4 * 3) / (90 * 120)
    assert len(found["later_s"]) == len(found["cpu_s"]) == 9


def test_the_table_has_a_row_for_every_measurement() -> None:
    run = {
        "load_s": 0.5,
        "first_s": 0.2,
        "later_s": [0.1, 0.3, 0.2],
        "once_cpu_s": 0.7,
        "cpu_s": [0.1],
        "memory_mb": 3,
        "tissue": 0.5,
    }
    row = {"side_px": 10, "task": "mask", "method": "otsu", "name": "OpenCV", **masks.summary([run])}
    assert "| 10² | OpenCV | 500.0 | 200.0 | 200.0 | 100.0 to 300.0 | 100.0 | 3 | 0.500 |" in masks.markdown(
        {"rows": [row]}
    )


def test_the_break_even_is_the_cost_over_the_saving_per_slide() -> None:
    run = {"load_s": 0.0, "first_s": 0.2, "once_cpu_s": 0.2, "memory_mb": 3, "tissue": 0.5}
    numpy_run = {**run, "later_s": [0.2], "cpu_s": [0.2]}
    numba_run = {**run, "load_s": 1.0, "once_cpu_s": 1.2, "later_s": [0.1], "cpu_s": [0.3]}
    runs = {masks.NUMPY.name: numpy_run, masks.WARM.name: numba_run}
    rows = [{"side_px": 9, "method": "fixed", "name": name, **masks.summary([each])} for name, each in runs.items()]
    table = masks.break_even_table(rows)
    assert "| 9² | fixed | warm | wall | 1.10 | 100.0 | 100.0 to 100.0 | 11 |" in table
    assert "| 9² | fixed | warm | CPU | 0.90 | -100.0 | -100.0 to -100.0 | never |" in table
