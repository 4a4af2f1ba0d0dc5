"""The simulated device of the benchmark: batches queue, and the caller waits for the batch before the last one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import busy_device


def test_a_caller_waits_for_the_batch_before_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(busy_device, "perf_counter", lambda: now[0])
    monkeypatch.setattr(busy_device, "sleep", lambda seconds: now.append(now.pop() + seconds))
    device = busy_device.SimulatedDevice(rate=10)
    ends = []
    for _ in range(3):
        device.submit(20)
        device.throttle()
        ends.append(now[0])
    device.synchronize()
    assert [*ends, now[0]] == [100, 102, 104, 106]
    assert device.patches == 60


def test_the_sessions_give_features_and_one_score_per_patch() -> None:
    device = busy_device.SimulatedDevice(rate=1e9)
    patches = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    features = busy_device.SimulatedBackbone(device, 5).run({"patches": patches})["features"]
    np.testing.assert_array_equal(features, [[0, 1, 2, 3, 4], [48, 49, 50, 51, 52]])
    assert busy_device.SimulatedStage(device).run({"features": features})["attention"].tolist() == [0, 48]


def test_the_table_has_a_row_for_each_version() -> None:
    row = {"version": "after", "wall_s": 4.5, "device_s": 4, "cpu_s": 6, "cpu_s_per_core": 3, "ratio": 1.125}
    assert "| after | 4.50 | 4.00 | 6.00 | 3.00 | 1.12 |" in busy_device.markdown({"rows": [row]})
