"""The benchmark of a slide's fixed cost: steps in steps, the comparison of files, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from benchmarks import fixed_cost


def test_time_in_an_inner_step_counts_for_the_inner_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 4.0, 8.0, 16.0])
    monkeypatch.setattr(fixed_cost, "process_time", lambda: next(times))
    steps = fixed_cost.CpuSteps()
    with steps.step("outer"):
        with steps.step("inner"):
            pass
        with steps.step("inner"):
            pass
    assert steps.seconds == {"inner": 6.0, "outer": 10.0}


def test_files_are_compared_by_content(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        value = int(name == "c")
        Image.new("RGB", (3, 2), (value, 0, 0)).save(tmp_path / name / "x.png", compress_level="abc".index(name))
        with h5py.File(tmp_path / name / "x.h5", "w") as file:
            file.create_group("stage")["coords"] = np.arange(3) + value
        (tmp_path / name / "x.json").write_text(json.dumps({"timing_s": name, "keep": value, f"only_{name}": 1}))
    fixed_cost.require_equal(tmp_path / "a", tmp_path / "b")
    for suffix in ("png", "h5", "json"):
        assert not fixed_cost.same_content(tmp_path / "a" / f"x.{suffix}", tmp_path / "c" / f"x.{suffix}")
    with pytest.raises(SystemExit, match="differ"):
        fixed_cost.require_equal(tmp_path / "a", tmp_path / "c")


def test_the_table_gives_the_ratio_of_both_versions() -> None:
    rows = [
        {"slide": "a", "version": name, "cpu_ms": dict.fromkeys(fixed_cost.COLUMNS, value)}
        for name, value in (("before", 4.0), ("after", 1.0))
    ]
    assert "| a | ratio | 0.25 |" in fixed_cost.markdown({"rows": rows})
