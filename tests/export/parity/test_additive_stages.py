"""Additive stage models as ONNX: evidence follows the contract and is compared like the other outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from hagmil.bundle import Precision
from hagmil.export.graph import axes_of, save
from hagmil.export.parity.compare import enforce_parity
from hagmil.export.parity.stages import check_stage_parity, landmark_counts
from hagmil.export.selftest_cases import stage_case
from hagmil.runtime.sessions import open_session
from tests.export.checkpoints import WIDTHS, additive_model
from tests.export.shared import stage_graph

DIM = 24


@pytest.mark.parametrize(
    ("rows", "precision", "landmarks"),
    [
        ("transformer", "fp16", tuple(width // 2 for width in WIDTHS)),
        ("independent", "fp16", ()),
    ],
)
def test_parity_includes_evidence_relative_to_its_size(
    rows: str, precision: Precision, landmarks: tuple[int, ...], tmp_path: Path
) -> None:
    model, path = additive_model(rows, DIM), tmp_path / "fine.onnx"
    assert landmark_counts(model) == landmarks
    save(stage_graph(model, DIM, "hag-mil", precision), path)
    outputs = onnx.load(path).graph.output
    assert [(value.name, axes_of(value)) for value in outputs] == [
        ("logits", (3,)),
        ("attention", ("patches",)),
        ("evidence", (3, "patches")),
    ]
    cases = check_stage_parity("fine", model, path, DIM, "hag-mil", precision, every_count=False)
    found = [row for case in cases for row in case]
    enforce_parity(found)
    evidence = next(row for row in found if row.tensor == "evidence" and row.lengths["patches"] == 3000)
    assert evidence.allowed < evidence.largest / 20
    (bias,) = (weights for name, weights in model.state_dict().items() if name == "readout.classifier.bias")
    session = open_session(path, threads=1)
    for patches in (1, 2, 50):
        given = session.run({"features": np.random.default_rng(1).standard_normal((patches, DIM), np.float32)})
        np.testing.assert_allclose(given["evidence"].sum(axis=1) + bias.numpy(), given["logits"], atol=2e-3)


def test_the_self_test_of_an_additive_stage_has_its_evidence() -> None:
    case = stage_case("fine", additive_model("independent", DIM), DIM, "hag-mil", "fp32")
    assert case.outputs["evidence"].shape == (3, 37)
