"""Every head is exported with its proof, verified, and run on a slide."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hagmil.bundle import open_backbone
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions, predict_one
from hagmil.runtime.verify import verify_bundle
from hagmil.trainer.checkpoints.checkpoint import build_models, load_checkpoint
from tests.integration.published_files import write_colour_backbone
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.trainer.head_checkpoints import CLASSES, SMALL, write_head_checkpoint

FEATURES = 6


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_backbone(tmp_path_factory.mktemp("backbone") / "colour", FEATURES)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pyramid(tmp_path_factory.mktemp("slides") / "tissue.tif", tissue_picture(), tile_px=256)


@pytest.mark.parametrize("kind", SMALL)
def test_a_head_is_exported_verified_and_run_on_a_slide(kind: str, backbone: Path, slide: Path, tmp_path: Path) -> None:
    card = write_head_checkpoint(tmp_path / "checkpoint", kind, open_backbone(backbone))
    export_bundle(tmp_path / "checkpoint", backbone, tmp_path / "bundle")
    manifest = load_model(tmp_path / "bundle", threads=1).bundle.manifest
    assert (manifest.kind, manifest.attention) == (kind, card.attention)
    report = verify_bundle(tmp_path / "bundle", threads=1)
    assert report.passed, report.checks

    model = load_model(tmp_path / "bundle", threads=1)
    (source,) = build_models(load_checkpoint(tmp_path / "checkpoint"))
    for patches in (1, 2, 3, 4, 5, 8, 9, 10, 50):
        bag = torch.randn(patches, FEATURES)
        outputs = model.stages[0].run({"features": bag.numpy()})
        with torch.inference_mode():
            expected = source(bag)
        for name, value in zip(("logits", "attention"), expected, strict=True):
            np.testing.assert_allclose(outputs[name], value.numpy(), rtol=1e-4, atol=1e-4)

    result = predict_one(SlideRequest("tissue", str(slide), slide, None), model, tmp_path / "out", PredictOptions())
    assert result.status == "ok", result.message
    assert tuple(result.probabilities) == CLASSES
    with h5py.File(tmp_path / "out" / "attention.h5") as file:
        attention = file["only"]["attention"][...]
        if card.attention == "per_class":
            by_class = file["only"]["class_attention"][...]
            np.testing.assert_array_equal(attention, by_class[CLASSES.index(result.prediction or "")])
        assert attention.shape == (result.stages[0].encoded,)
