"""Files that version 0.1.0 wrote before its modules moved are read, and give the numbers that they gave then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import hagmil
from hagmil.bundle import open_bundle
from hagmil.features import read_features
from hagmil.runtime.results.result import read_result
from hagmil.runtime.verify import verify_bundle
from hagmil.trainer.checkpoints.checkpoint import build_models, load_checkpoint


@pytest.fixture
def folder(data_folder: Path) -> Path:
    """The files of the earlier version."""
    return data_folder / "compatibility"


def test_the_bundle_opens_and_passes_its_self_test(folder: Path) -> None:
    bundle = open_bundle(folder / "bundle")
    assert [stage.spacing_um for stage in bundle.manifest.stages] == [2.0, 1.0, 0.5]
    report = verify_bundle(folder / "bundle")
    assert [check for check in report.checks if check.state == "failed"] == []


def test_the_slide_gets_the_same_result(folder: Path) -> None:
    earlier = read_result(folder / "result")
    result = hagmil.predict_slide(folder / "phantom_002.tif", model=folder / "bundle", keep=4)
    assert result.prediction == earlier.prediction == "tumour"
    assert result.probabilities == pytest.approx(earlier.probabilities, abs=1e-5)
    for now, then in zip(result.stages, earlier.stages, strict=True):
        assert (now.candidates, now.encoded, now.kept) == (then.candidates, then.encoded, then.kept)
        assert now.logits == pytest.approx(then.logits, abs=1e-5)
    assert result.bundle_sha256 == earlier.bundle_sha256


def test_the_attention_file_is_read(folder: Path) -> None:
    stages = hagmil.read_attention(folder / "result" / "attention.h5")
    assert [len(stage.coords) for stage in stages] == [4, 16, 16]


def test_the_features_are_read(folder: Path) -> None:
    slide = read_features(folder / "features" / "phantom_002.h5")
    assert {stage.name: stage.features.shape for stage in slide.stages} == {
        "2um": (4, 128),
        "1um": (16, 128),
        "0.5um": (64, 128),
    }


def test_the_checkpoint_gives_the_logits_of_the_bundle(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "checkpoint")
    assert checkpoint.card.classes == ("normal", "tumour")
    bag = read_features(folder / "features" / "phantom_002.h5").stages[-1].features.astype(np.float32)
    model = build_models(checkpoint)[-1].eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(bag)).logits.numpy()
    deployed = hagmil.run_bag(hagmil.load_model(folder / "bundle"), bag)
    np.testing.assert_allclose(deployed.logits, logits, atol=1e-4)
