"""Comparison of the verdicts of an export on slides, with the real cascade."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from hagmil.bundle import open_backbone
from hagmil.errors import ParityError
from hagmil.export import pipeline
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.model_card import MODEL_CARD_NAME
from hagmil.export.parity.compare import PARITY_NAME, ParityReport
from hagmil.export.pipeline import ExportReport, export_bundle
from hagmil.workflows import slide_runner as runner_module
from hagmil.workflows.slide_runner import default_phantoms, open_slide_runner
from tests.export.checkpoints import write_small_checkpoint
from tests.export.shared import stage_graph

pytestmark = pytest.mark.timeout(900)  # each test exports a cascade


@pytest.fixture(scope="module", autouse=True)
def _small_phantoms() -> Iterator[None]:
    """Use small phantoms on which the scores of the untrained model are not nearly equal at the selection limit."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "PHANTOM_PX", 1024)
        patch.setattr(runner_module, "_SEED", 3)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone and a small checkpoint."""
    folder = tmp_path_factory.mktemp("source")
    export_backbone("tiny", None, folder / "backbone")
    write_small_checkpoint(folder / "checkpoint", open_backbone(folder / "backbone"))
    return folder


def _export(folder: Path, out: Path, **options: Any) -> ExportReport:
    with open_slide_runner([], 2, progress=lambda *_: None) as slides:
        return export_bundle(folder / "checkpoint", folder / "backbone", out, slides=slides, **options)


def _wrong_by(factor: float) -> Any:
    """Return a ``stage_graph`` that scales the largest weight of each graph."""

    def wrong_graph(*arguments: Any) -> onnx.ModelProto:
        model = stage_graph(*arguments)
        weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
        values = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), weight.name))
        return model

    return wrong_graph


def test_the_verdicts_of_an_fp16_export_are_compared_and_recorded(folder: Path, tmp_path: Path) -> None:
    reported: list[str] = []
    with open_slide_runner([], 2, progress=lambda step, *_: reported.append(step)) as slides:
        report = export_bundle(
            folder / "checkpoint", folder / "backbone", tmp_path / "bundle", slides=slides, precision="fp16"
        )

    found = ParityReport.model_validate_json(report.bundle.file(PARITY_NAME).read_bytes()).slides
    assert found is not None
    assert found.rounded
    assert (found.with_verdict, found.equal_verdicts, found.different) == (2, 2, ())
    assert 0 < found.largest_change < 0.01
    assert [stage.name for stage in found.stages] == ["coarse", "fine"]
    assert found.stages[0].chosen_on == 2
    assert {"phantoms", "slides with the source models", "slides with the exported graphs"} <= set(reported)
    card = report.bundle.file(MODEL_CARD_NAME).read_text()
    assert "Verdicts of the torch models and of the graphs on 2 phantoms of 1024 px: 2 of 2 are equal" in card
    manifest = report.bundle.manifest
    assert manifest.precision == "fp16"
    assert manifest.backbone.reduced_from == open_backbone(folder / "backbone").sha256
    assert manifest.files["backbone.onnx"].sha256 != manifest.backbone.reduced_from


def test_float32_graphs_give_the_verdicts_of_their_models(folder: Path, tmp_path: Path) -> None:
    slides = _export(folder, tmp_path / "bundle").parity.slides

    assert slides is not None
    assert not slides.rounded
    assert slides.largest_change < 1e-5
    assert slides.stages[0].kept_alike == 1.0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_scaled_weight_is_detected_by_verdicts_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(pipeline, "stage_graph", _wrong_by(1.5))
    monkeypatch.setattr(pipeline, "enforce_parity", lambda _: None)

    with pytest.raises(
        ParityError, match=r"^verdicts: (stage coarse keeps other patches|\d of 2 slides have another verdict)"
    ):
        _export(folder, tmp_path / "bundle", precision=precision)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_same_scaled_weight_is_detected_by_tensors_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr(pipeline, "stage_graph", _wrong_by(1.5))

    with pytest.raises(ParityError, match=r"(coarse|fine): (logits|attention) is off by"):
        export_bundle(folder / "checkpoint", folder / "backbone", tmp_path / "bundle", precision=precision)

    assert list(tmp_path.iterdir()) == []


def test_phantoms_are_used_by_default_for_fp16_without_slides() -> None:
    assert default_phantoms("fp32", None) == 0
    assert default_phantoms("fp16", ["slides"]) == 0
    assert default_phantoms("fp16", None) > 0
    with open_slide_runner([], 0, progress=lambda *_: None) as slides:
        assert slides is None
