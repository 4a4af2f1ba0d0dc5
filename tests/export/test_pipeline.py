"""Export of a checkpoint and a backbone to a bundle."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hagmil.bundle import SELFTEST_NAME, open_backbone, open_bundle
from hagmil.errors import BundleError, ParityError, UsageError
from hagmil.export import pipeline
from hagmil.export.model_card import MODEL_CARD_NAME
from hagmil.export.parity.compare import PARITY_NAME, ParityReport
from hagmil.export.pipeline import ExportReport, export_bundle
from hagmil.runtime.sessions import open_session
from hagmil.runtime.verify import verify_bundle
from hagmil.selftest import read_selftest
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from tests.export.checkpoints import CERTAINTY, TESTED, additive_config, write_small_checkpoint
from tests.export.shared import stage_graph


def test_the_bundle_contains_exactly_the_files_of_the_contract(report: ExportReport) -> None:
    manifest = report.bundle.manifest
    present = {path.name for path in report.bundle.path.iterdir()}

    assert present == {
        "bundle.json", "backbone.onnx", "coarse.onnx", "fine.onnx", SELFTEST_NAME, MODEL_CARD_NAME, PARITY_NAME,
    }  # fmt: skip
    assert set(manifest.files) == present - {"bundle.json"}
    assert [(stage.name, stage.spacing_um, stage.keep, stage.onnx) for stage in manifest.stages] == [
        ("coarse", 1.0, 20, "coarse.onnx"),
        ("fine", 0.5, None, "fine.onnx"),
    ]
    assert (manifest.kind, manifest.classes, manifest.hierarchy) == ("hag-mil", ("normal", "tumour"), None)
    assert (manifest.patch_px, manifest.precision) == (64, "fp32")
    assert (manifest.backbone.name, manifest.backbone.features) == ("tiny", 128)
    assert "Research use only" in manifest.intended_use


def test_the_backbone_is_the_given_file(report: ExportReport, backbone_dir: Path) -> None:
    assert report.bundle.manifest.files["backbone.onnx"].sha256 == open_backbone(backbone_dir).sha256


def test_provenance_names_the_origin_of_the_weights(report: ExportReport, checkpoint_dir: Path) -> None:
    provenance = report.bundle.manifest.provenance

    assert provenance.checkpoint_sha256 == load_checkpoint(checkpoint_dir).card.weights_sha256
    assert provenance.backbone_weights == "random, seed 0"
    assert provenance.training["validation"]["auc"] == 0.875
    assert {"torch", "onnx", "hagmil"} <= provenance.versions.keys()


def test_the_self_test_passes_on_this_machine(report: ExportReport) -> None:
    cases = read_selftest(report.bundle.file(SELFTEST_NAME))

    assert [case.model for case in cases] == ["backbone", "coarse", "fine"]
    assert cases[0].inputs["patches"].shape[1:] == (64, 64, 3)
    for case in cases:
        outputs = open_session(report.bundle.file(f"{case.model}.onnx")).run(dict(case.inputs))
        assert outputs.keys() == case.outputs.keys()
        for name, expected in case.outputs.items():
            assert np.abs(outputs[name] - expected).max() < 1e-5 < case.absolute
    assert not np.allclose(cases[1].outputs["logits"], cases[2].outputs["logits"])


def test_the_parity_report_covers_stages_and_backbone(report: ExportReport) -> None:
    written = ParityReport.model_validate_json(report.bundle.file(PARITY_NAME).read_bytes())

    assert {row.model for row in written.rows} == {"backbone", "coarse", "fine"}
    assert {row.model for row in report.parity.rows} == {"coarse", "fine"}
    assert all(row.passed for row in written.rows)


def test_the_model_card_contains_every_section(report: ExportReport) -> None:
    card = report.bundle.file(MODEL_CARD_NAME).read_text(encoding="utf-8")

    assert card.startswith("# hag-mil model for normal, tumour\n\nResearch use only. Not for diagnosis.")
    for part in (
        "## Model", "## Training", "## Expected input", "## Limitations",
        "| coarse | 1 | 20 | `coarse.onnx` |", "| validation: auc | 0.875 |", "0.5 um/px or finer",
        "| coarse | logits | 14 |", "| fine | attention | 7 |", "| backbone | features | 8 |",
        "Verdicts on slides were not compared.",
        "20 patches are kept: the smallest tested number from which on all verdicts of 9 validation slides",
        "| 4 | 90.00% | 50.00% | 200 |", "sure above a margin of 0.25, a heuristic",
        "12.50% of their verdicts are unsure",
    ):  # fmt: skip
        assert part in card


def test_the_manifest_contains_the_test_and_the_threshold_of_the_checkpoint(report: ExportReport) -> None:
    manifest = report.bundle.manifest

    assert (manifest.tested, manifest.certainty) == (TESTED, CERTAINTY)
    assert report.keep_reason.startswith("20 patches are kept: the smallest tested number")


def test_a_wrong_graph_stops_the_export_and_leaves_no_files(
    checkpoint_dir: Path, backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_graph(*args: Any) -> onnx.ModelProto:
        model = stage_graph(*args)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        return model

    monkeypatch.setattr(pipeline, "stage_graph", wrong_graph)

    with pytest.raises(
        ParityError, match=r"^(coarse|fine): (logits|attention) is off by \S+ at patches \d+ \(.*allowed"
    ):
        export_bundle(checkpoint_dir, backbone_dir, tmp_path / "bundle")

    assert list(tmp_path.iterdir()) == []


def test_features_of_another_backbone_are_refused(backbone_dir: Path, tmp_path: Path) -> None:
    card = open_backbone(backbone_dir)
    write_small_checkpoint(tmp_path / "checkpoint", card.model_copy(update={"sha256": "a" * 64, "name": "other"}))

    with pytest.raises(
        BundleError, match=r'trained on features of backbone "other" \(a{12}\.\.\.\), but "tiny"'
    ) as caught:
        export_bundle(tmp_path / "checkpoint", backbone_dir, tmp_path / "bundle")

    assert caught.value.code == "backbone_mismatch"
    assert not (tmp_path / "bundle").exists()


def test_a_stage_named_backbone_is_refused(backbone_dir: Path, tmp_path: Path) -> None:
    write_small_checkpoint(tmp_path / "checkpoint", open_backbone(backbone_dir), stages=("backbone", "fine"))

    with pytest.raises(BundleError, match='a stage is named "backbone"'):
        export_bundle(tmp_path / "checkpoint", backbone_dir, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["../fine", "", "a b"])
def test_a_stage_with_a_name_that_is_not_a_file_name_is_refused(backbone_dir: Path, tmp_path: Path, name: str) -> None:
    write_small_checkpoint(tmp_path / "checkpoint", open_backbone(backbone_dir), stages=(name,))

    with pytest.raises(BundleError, match="a stage of the checkpoint cannot be exported: name"):
        export_bundle(tmp_path / "checkpoint", backbone_dir, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_backbone_with_another_patch_size_is_refused(backbone_dir: Path, tmp_path: Path) -> None:
    card = open_backbone(backbone_dir).model_copy(update={"patch_px": 32})
    for file in backbone_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "backbone.json").write_text(card.model_dump_json())
    write_small_checkpoint(tmp_path / "checkpoint", card)

    with pytest.raises(BundleError, match="patches of 64 pixels, but the backbone takes patches of 32 pixels"):
        export_bundle(tmp_path / "checkpoint", tmp_path, tmp_path / "bundle")


def test_an_existing_bundle_is_kept_without_overwrite(
    report: ExportReport, checkpoint_dir: Path, backbone_dir: Path
) -> None:
    with pytest.raises(UsageError, match="--overwrite"):
        export_bundle(checkpoint_dir, backbone_dir, report.bundle.path)

    assert open_bundle(report.bundle.path).sha256 == report.bundle.sha256


def test_an_ill_conditioned_checkpoint_is_exported_with_a_warning(
    backbone_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_small_checkpoint(tmp_path / "checkpoint", open_backbone(backbone_dir), stages=("fine",), gain=12.0)
    reported: list[tuple[str, int, int]] = []

    with caplog.at_level(logging.WARNING, "hagmil"):
        export_bundle(
            tmp_path / "checkpoint",
            backbone_dir,
            tmp_path / "bundle",
            intended_use="Nothing at all.",
            progress=lambda *step: reported.append(step),
        )

    assert 'stage "fine" is ill-conditioned at' in caplog.text
    assert open_bundle(tmp_path / "bundle").manifest.intended_use == "Nothing at all."
    assert reported[:2] == [("export", 0, 1), ("export", 1, 1)]
    assert reported[-1] == ("parity", 14, 14)


def test_an_additive_checkpoint_gives_a_bundle_whose_evidence_is_verified(backbone_dir: Path, tmp_path: Path) -> None:
    backbone = open_backbone(backbone_dir)
    write_small_checkpoint(tmp_path / "checkpoint", backbone, stages=("fine",), config=additive_config("independent"))
    report = export_bundle(tmp_path / "checkpoint", backbone_dir, tmp_path / "bundle")
    assert report.bundle.manifest.readout == "additive"
    assert {row.tensor for row in report.parity.rows} == {"logits", "attention", "evidence"}
    verified = verify_bundle(report.bundle.path, threads=1)
    assert verified.passed
    assert {"fine evidence", "fine sum of evidence"} < {check.subject for check in verified.checks}
