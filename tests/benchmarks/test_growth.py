"""The growth benchmark: expected patches, limits of memory, and memory by step."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

from benchmarks.growth import ELSEWHERE, MemoryClock, check_limits, expected_patches, markdown, note_peak


def row(size_px: int, above_mb: int) -> dict[str, Any]:
    return {
        "size_px": size_px,
        "encoded": [40, 160, 200],
        "expected_patches": [40, 160, 200],
        "timing_s": {"read": 1.0, "total": 2.0},
        "peak_rss_mb": 900 + above_mb,
        "loaded_rss_mb": 900,
        "models_peak_mb": 950,
        "above_models_mb": above_mb,
        "peak_step": "backbone",
    }


def test_a_stage_reads_four_children_of_each_kept_patch() -> None:
    assert expected_patches([43, 1, 1], 50) == [43, 172, 200]
    assert expected_patches([500, 1, 1], 50) == [500, 200, 200]
    assert expected_patches([2, 1, 1], 50) == [2, 8, 32]


def test_memory_counts_as_equal_if_all_sizes_are_within_ten_percent() -> None:
    assert check_limits([row(8, 300), row(16, 310), row(64, 330)])["equal"]
    assert not check_limits([row(8, 300), row(16, 340), row(64, 300)])["equal"]
    assert check_limits([row(8, 300), row(64, 330)])["growth_of_above_models"] == 0.1


def test_memory_above_the_models_is_compared_with_a_limit() -> None:
    assert check_limits([row(8, 599)])["under_limit"]
    assert not check_limits([row(8, 300), row(64, 600)])["under_limit"]


def test_the_table_marks_an_unexpected_number_of_patches() -> None:
    rows = [row(8192, 300), {**row(65_536, 310), "encoded": [41, 160, 200]}]
    text = markdown({"keep": 50, "rows": rows, **check_limits(rows)})
    assert "| 8192² | 40 + 160 + 200 | 0.00 | 1.00 |" in text
    assert "41 + 160 + 200 (not as expected)" in text
    assert "at most 310 MB (below 600 MB: yes), +3.3%" in text


def test_the_peak_of_a_step_excludes_earlier_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryClock, "peaks", {})
    clock = MemoryClock()
    with clock.step("much"):
        held = mmap.mmap(-1, 64 << 20)  # a mapping, as the heap may have free memory
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    held.close()
    note_peak(ELSEWHERE)
    with clock.step("little"):
        pass
    assert MemoryClock.peaks["much"] - MemoryClock.peaks["little"] > 50
    assert set(clock.seconds) == {"much", "little"}
