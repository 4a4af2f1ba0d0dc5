"""hagmil export --precision int8: the bundle, its verification, and refused options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from hagmil.bundle import Quantization, open_backbone, open_bundle
from hagmil.cli.app import app
from hagmil.errors import ParityError, UsageError
from hagmil.export import pipeline
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.int8.backbone import quantise_backbone
from hagmil.export.model_card import MODEL_CARD_NAME
from hagmil.export.parity.compare import PARITY_NAME, ParityReport
from hagmil.export.parity.stages import check_stage_parity
from hagmil.export.pipeline import ExportReport, export_bundle
from hagmil.phantom import write_cohort
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.verify import verify_bundle
from hagmil.workflows import calibration_patches
from hagmil.workflows.calibration_patches import SlidePatches, calibration_slides
from hagmil.workflows.slide_runner import open_slide_runner
from tests.export.checkpoints import write_small_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A backbone, a small checkpoint on it, and two phantoms."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("source")
    export_backbone("tiny", None, folder / "backbone")
    write_small_checkpoint(folder / "checkpoint", open_backbone(folder / "backbone"))
    write_cohort(folder, slides=2, size_px=1024, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_patches, "CALIBRATION_PATCHES", 48)
        patch.setattr(calibration_patches, "HELD_OUT_PATCHES", 16)
        patch.setattr(pipeline, "check_stage_parity", _check_at_few_counts)
        yield folder


def _check_at_few_counts(*arguments: Any, every_count: bool, **options: Any) -> Any:
    """Compare the fp32 stage models at few bag sizes; other tests compare them at all sizes."""
    del every_count
    return check_stage_parity(*arguments, every_count=False, **options)


def _export(folder: Path, out: Path, **options: Any) -> ExportReport:
    own = calibration_slides([str(folder / "slides")])
    requests = [slide.request for slide in own]
    with open_slide_runner([], 0, progress=lambda *_: None, calibration=requests) as slides:
        return export_bundle(
            folder / "checkpoint",
            folder / "backbone",
            out,
            precision="int8",
            slides=slides,
            calibration=SlidePatches(own, lambda *_: None),
            **options,
        )


@pytest.fixture(scope="module")
def report(folder: Path) -> ExportReport:
    """The report of an export with int8."""
    return _export(folder, folder / "bundle")


def test_the_manifest_contains_calibration_agreement_and_speed(report: ExportReport, folder: Path) -> None:
    manifest = report.bundle.manifest
    made = manifest.quantization

    assert made is not None
    assert manifest.precision == "int8"
    assert manifest.opsets == {"backbone.onnx": 20, "coarse.onnx": 20, "fine.onnx": 20}
    assert manifest.backbone.reduced_from == open_backbone(folder / "backbone").sha256
    assert (made.calibration, made.compared_slides) == ("2 calibration slides", "2 of the calibration slides")
    assert (made.calibration_patches, made.compared_patches) == (48, 16)
    assert (made.verdicts, made.equal_verdicts) == (2, 2)
    assert made.kept_alike.keys() == {"coarse"}
    assert made.allowed_alike <= made.kept_alike["coarse"] <= 1
    assert made.throughput.threads == 1


def test_only_the_backbone_is_in_int8(report: ExportReport) -> None:
    def kinds(name: str) -> set[int]:
        return {tensor.data_type for tensor in onnx.load(report.bundle.file(name)).graph.initializer}

    assert onnx.TensorProto.INT8 in kinds("backbone.onnx")
    assert onnx.TensorProto.INT8 not in kinds("coarse.onnx") | kinds("fine.onnx")


def test_the_parity_report_and_the_model_card_describe_the_quantisation(report: ExportReport) -> None:
    written = ParityReport.model_validate_json(report.bundle.file(PARITY_NAME).read_bytes())
    card = report.bundle.file(MODEL_CARD_NAME).read_text(encoding="utf-8")

    assert written.quantization == report.bundle.manifest.quantization
    assert {row.model for row in written.rows} == {"backbone, fp32", "coarse", "fine"}
    assert {row.allowed < 1e-3 for row in written.rows} == {True}  # the tolerance of fp32
    for words in ("The encoder is int8, the stage models are fp32", "calibrated on 48 patches", "patches/s"):
        assert words in card


def test_the_bundle_passes_verification_and_inference(report: ExportReport, folder: Path, tmp_path: Path) -> None:
    assert verify_bundle(report.bundle.path).passed
    slide = next((folder / "slides").iterdir())
    done = CliRunner().invoke(
        app, ["infer", str(slide), "--model", str(report.bundle.path), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output


def test_inspect_shows_the_quantisation(report: ExportReport) -> None:
    done = CliRunner().invoke(app, ["inspect", str(report.bundle.path)])
    lines = [" ".join(line.split()) for line in done.output.splitlines()]

    assert done.exit_code == 0, done.output
    for start in ("precision int8", "backbone in int8 static QDQ", "smallest cosine", "verdicts 2 of 2", "patches/s"):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.startswith("backbone.onnx") and line.endswith("int8") for line in lines)


def test_a_broken_graph_is_found_by_the_verdicts_on_slides(
    folder: Path, tmp_path: Path, report: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = iter(report.bundle.manifest.stages)

    def broken(source: Path, graph: Path, *more: Any) -> Quantization:
        made = quantise_backbone(source, graph, *more)
        model = onnx.load(graph)
        scales = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 1]
        for tensor in scales:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
        onnx.save(model, graph)
        return made

    monkeypatch.setattr(pipeline, "quantise_backbone", broken)
    monkeypatch.setattr(pipeline, "check_stage_parity", lambda *_, **__: iter(()))
    monkeypatch.setattr(pipeline, "stage_graph", lambda *_: onnx.load(report.bundle.file(next(stages).onnx)))
    with pytest.raises(
        ParityError, match=r"^verdicts: (stage coarse keeps other patches|\d of 2 slides have another verdict)"
    ):
        _export(folder, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_int8_without_calibration_or_slides_is_refused(folder: Path, tmp_path: Path) -> None:
    arguments = (folder / "checkpoint", folder / "backbone", tmp_path / "bundle")
    own = SlidePatches(calibration_slides([str(folder / "slides")]), lambda *_: None)
    with pytest.raises(UsageError, match="calibration patches are required with precision int8"):
        export_bundle(*arguments, precision="int8")
    with pytest.raises(UsageError, match="calibration patches are required with precision int8"):
        export_bundle(*arguments, precision="fp16", calibration=own)
    with pytest.raises(UsageError, match="int8 requires slides to compare verdicts on"):
        export_bundle(*arguments, precision="int8", calibration=own)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], "needs --calibration"),
        (["--precision", "int8", "--calibration", "s", "--trt"], "needs symmetric quantisation"),
        (["--precision", "int8", "--calibration", "s", "--parity-phantoms", "0"], "remove --parity-phantoms 0"),
        (["--calibration", "s"], "--calibration needs --precision int8"),
        (["--precision", "int4"], "fp32, fp16, int8"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["export", "c", "--backbone", "b", "--out", "o", *options])
    assert isinstance(done.exception, UsageError)
    assert words in done.exception.message
    assert done.exception.exit_code == 2


def test_a_manifest_with_quantization_requires_int8(report: ExportReport) -> None:
    manifest = report.bundle.manifest.model_dump(mode="json")
    with pytest.raises(ValueError, match="quantization requires precision int8"):
        type(report.bundle.manifest).model_validate(manifest | {"precision": "fp32"})
    assert open_bundle(report.bundle.path).manifest.quantization is not None


def test_tensorrt_refuses_an_int8_bundle(report: ExportReport) -> None:
    with pytest.raises(UsageError, match="quantised for CPUs"):
        load_model(report.bundle.path, provider="tensorrt")
