"""The start-up measurement ends where the first batch comes, and accounts for every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import start_up
from tests.runtime.slide_files import save_pyramid, tissue_picture


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_run_ends_at_its_first_batch_with_a_mark_for_every_step(state: str, tmp_path: Path) -> None:
    slide = save_pyramid(tmp_path / "tissue.tif", tissue_picture(), tile_px=256)
    marks = start_up.start_once(slide, state, tmp_path)
    times = [marks[step] for step in start_up.STEPS]
    assert times == sorted(times)
    assert times[0] > 0
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_run_that_never_comes_to_a_batch_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended before its first batch"):
        start_up.start_once(tmp_path / "gone.svs", "cold", tmp_path)


def test_the_parts_add_up_to_the_whole() -> None:
    run = {step: float(index + 1) for index, step in enumerate(start_up.STEPS)}
    found = start_up.summary([run, run])
    assert found["seconds"] == sum(found["steps"].values()) == len(start_up.STEPS)
