"""The verdict from a model's outputs, with one or two layers of labels."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.bundle import Backbone, FileEntry, Hierarchy, Manifest, Provenance, Stage
from hagmil.errors import BundleError
from hagmil.runtime.inference.verdict import class_attentions, patch_attention, stage_logits, verdict_of
from hagmil.tissue_parameters import TissueParameters

HIERARCHY = Hierarchy(coarse=("benign", "malignant"), fine=("a", "b", "c"), fine_to_coarse=(0, 0, 1))


def _manifest(kind: str, hierarchy: Hierarchy | None, stages: int) -> Manifest:
    names = [f"s{index}" for index in range(stages)]
    return Manifest(
        kind=kind,
        classes=("a", "b", "c"),
        hierarchy=hierarchy,
        patch_px=64,
        stages=tuple(
            Stage(name=name, spacing_um=4.0 / 2**i, keep=None if i == stages - 1 else 4, onnx=f"{name}.onnx")
            for i, name in enumerate(names)
        ),
        backbone=Backbone(onnx="b.onnx", features=2, name="x"),
        tissue=TissueParameters(),
        precision="fp32",
        files={name: FileEntry(sha256="0" * 64, bytes=1) for name in ("b.onnx", *(f"{n}.onnx" for n in names))},
        provenance=Provenance(
            created=datetime(2026, 1, 1, tzinfo=UTC),
            hagmil="0",
            versions={},
            checkpoint_sha256="0" * 64,
            backbone_weights="x",
        ),
        intended_use="Tests.",
    )


def _hmil(coarse: list[float], fine: list[float]) -> dict[str, NDArray[np.float32]]:
    patches = np.array([0.1, 0.2, 0.7])
    return {
        "coarse_logits": np.log(np.array(coarse, np.float32)),
        "fine_logits": np.log(np.array(fine, np.float32)),
        "coarse_attention": np.stack([patches, patches[::-1]]).astype(np.float32),
        "fine_attention": np.stack([np.roll(patches, shift) for shift in range(3)]).astype(np.float32),
    }


def test_two_layers_give_both_verdicts_and_the_summed_fine_probabilities() -> None:
    verdict = verdict_of(_manifest("hmil", HIERARCHY, 1), _hmil([0.8, 0.2], [0.35, 0.25, 0.4]))
    assert verdict.prediction == "c"
    assert verdict.probabilities == pytest.approx({"a": 0.35, "b": 0.25, "c": 0.4})
    assert verdict.coarse is not None
    assert verdict.coarse.prediction == "benign"
    assert verdict.coarse.probabilities == pytest.approx({"benign": 0.8, "malignant": 0.2})
    assert verdict.coarse.from_fine == pytest.approx({"benign": 0.6, "malignant": 0.4})
    assert not verdict.coarse.agrees
    agreeing = verdict_of(_manifest("hmil", HIERARCHY, 1), _hmil([0.8, 0.2], [0.5, 0.1, 0.4]))
    assert agreeing.coarse is not None
    assert agreeing.coarse.agrees


def test_patch_attention_is_that_of_the_predicted_fine_class() -> None:
    outputs = _hmil([0.8, 0.2], [0.1, 0.6, 0.3])
    np.testing.assert_array_equal(patch_attention(outputs), outputs["fine_attention"][1])
    np.testing.assert_array_equal(stage_logits(outputs), outputs["fine_logits"])


def test_class_attention_is_given_for_the_predicted_fine_and_coarse_class() -> None:
    outputs = _hmil([0.2, 0.8], [0.1, 0.6, 0.3])
    verdict = verdict_of(_manifest("hmil", HIERARCHY, 1), outputs)
    fine, coarse = class_attentions(HIERARCHY, verdict, outputs)
    assert (fine.layer, fine.name, coarse.layer, coarse.name) == ("fine", "b", "coarse", "malignant")
    np.testing.assert_array_equal(fine.attention, outputs["fine_attention"][1])
    np.testing.assert_array_equal(coarse.attention, outputs["coarse_attention"][1])


def test_the_coarse_verdict_of_a_cascade_comes_from_the_stage_before_the_last() -> None:
    manifest = _manifest("hag-mil", HIERARCHY, 2)
    fine = {"logits": np.log(np.array([0.1, 0.2, 0.7], np.float32)), "attention": np.zeros(3, np.float32)}
    coarse = {"logits": np.log(np.array([0.1, 0.9], np.float32)), "attention": np.zeros(3, np.float32)}
    verdict = verdict_of(manifest, fine, coarse)
    assert verdict.coarse is not None
    assert (verdict.prediction, verdict.coarse.prediction, verdict.coarse.agrees) == ("c", "malignant", True)
    assert class_attentions(HIERARCHY, verdict, fine) == ()


def test_one_layer_of_labels_gives_no_coarse_verdict() -> None:
    outputs = {"logits": np.zeros(3, np.float32), "attention": np.zeros(3, np.float32)}
    assert verdict_of(_manifest("hag-mil", None, 2), outputs, outputs).coarse is None


def test_a_number_of_classes_that_differs_from_the_manifest_is_rejected() -> None:
    outputs = {"logits": np.zeros(4, np.float32)}
    with pytest.raises(BundleError, match="4 classes, the manifest names 3"):
        verdict_of(_manifest("hag-mil", None, 1), outputs)
    with pytest.raises(BundleError, match="coarse logits: 3 classes, the manifest names 2"):
        verdict_of(_manifest("hmil", HIERARCHY, 1), _hmil([0.3, 0.3, 0.4], [0.3, 0.3, 0.4]))
