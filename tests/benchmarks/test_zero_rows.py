"""The benchmark on the zero rows of Nystrom attention."""

from __future__ import annotations

import pytest
import torch

from benchmarks.zero_rows import markdown, measure, without_zero_rows
from hagmil.trainer.models.iat import IatConfig
from hagmil.trainer.models.nystrom import NystromAttention

TINY = IatConfig(widths=(16,), hidden_width=8, gate_width=4, gate_dropout=0.0, attention_dropout=0.0)


def test_without_zero_rows_attention_over_equal_rows_is_their_value() -> None:
    torch.manual_seed(0)
    layer = NystromAttention(16, heads=2, landmarks=8, pinv_iterations=6, value_kernel=3, dropout=0.0).eval()
    torch.nn.init.zeros_(layer.value_conv.weight)
    torch.nn.init.zeros_(layer.to_out.bias)
    rows = torch.ones(5, 16)
    value = layer.to_out(torch.nn.functional.linear(rows, layer.to_qkv.weight[32:])) - layer.to_out.bias
    with torch.inference_mode(), without_zero_rows():
        removed = layer(rows)
    with torch.inference_mode():
        counted = layer(rows)
    torch.testing.assert_close(removed, value, rtol=0.2, atol=0.05)
    assert counted.norm() < 0.8 * removed.norm()


def test_a_row_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.zero_rows.SIZES", (2, 5))
    monkeypatch.setattr("benchmarks.zero_rows.TRAINING_SIZES", (2, 6))
    report = measure(TINY, steps=2, bags=2, seed=0, retrain=True)
    assert [row["patches"] for row in report["rows"]] == [2, 5]
    assert markdown(report).count("\n") == 3
