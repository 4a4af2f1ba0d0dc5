"""The start-up benchmark: runs end at the first batch, and all steps are timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import start_up
from tests.runtime.slide_files import save_pyramid, tissue_picture


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_run_ends_at_its_first_batch_and_times_every_step(state: str, tmp_path: Path) -> None:
    slide = save_pyramid(tmp_path / "tissue.tif", tissue_picture(), tile_px=256)
    marks = start_up.start_once(slide, state, tmp_path)
    times = [marks[step] for step in start_up.STEPS]
    assert times == sorted(times)
    assert times[0] > 0
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_run_without_a_batch_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended before its first batch"):
        start_up.start_once(tmp_path / "gone.svs", "cold", tmp_path)


def test_the_steps_add_up_to_the_total() -> None:
    run = {step: float(index + 1) for index, step in enumerate(start_up.STEPS)}
    found = start_up.summary([run, run])
    assert found["seconds"] == sum(found["steps"].values()) == len(start_up.STEPS)
