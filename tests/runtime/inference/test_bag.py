"""One stage model on the features of a bag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hagmil.errors import UsageError
from hagmil.runtime.extract import extract
from hagmil.runtime.inference.bag import run_bag
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.predict import predict_slide
from tests.runtime.small_bundle import write_small_bundle

BAG = np.random.default_rng(0).random((5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


def test_run_bag_gives_logits_and_attention(model: LoadedModel) -> None:
    logits, attention, evidence = run_bag(model, BAG)
    assert evidence is None
    green = BAG[:, 1]
    np.testing.assert_allclose(logits, [green.mean(), 1 - green.mean()], atol=1e-6)
    np.testing.assert_allclose(attention, -green, atol=1e-6)
    assert (logits.dtype, attention.dtype) == (np.float32, np.float32)


def test_run_bag_gives_the_evidence_of_an_additive_model(tmp_path: Path) -> None:
    model = load_model(write_small_bundle(tmp_path / "bundle", readout="additive"), threads=1)
    output = run_bag(model, BAG)
    np.testing.assert_allclose(output.evidence, [BAG[:, 1], -BAG[:, 1]], atol=1e-6)
    assert output.evidence is not None
    np.testing.assert_allclose(output.evidence.sum(axis=1) + np.array([0, 1]), output.logits, atol=1e-5)


def test_run_bag_accepts_other_float_types(model: LoadedModel) -> None:
    output = run_bag(model, BAG.astype(np.float16))
    np.testing.assert_allclose(output.attention, -BAG[:, 1], atol=1e-3)


@pytest.mark.parametrize("stage", ["2um", 0, -3])
def test_run_bag_on_extracted_features_repeats_the_first_stage_of_predict_slide(
    stage: str | int, model: LoadedModel, tissue_path: Path
) -> None:
    result = predict_slide(tissue_path, model=model)
    bag = extract(tissue_path, backbone=model).stages[0].features
    logits, attention, _ = run_bag(model, bag, stage)
    np.testing.assert_allclose(logits, result.stages[0].logits, atol=1e-6)
    np.testing.assert_allclose(attention, result.attention[0].attention, atol=1e-6)


@pytest.mark.parametrize("stage", ["4um", 3, -4])
def test_run_bag_rejects_unknown_stages(stage: str | int, model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="has no stage"):
        run_bag(model, BAG, stage)


@pytest.mark.parametrize("shape", [(0, 3), (5, 4), (3,)])
def test_run_bag_rejects_features_of_another_shape(shape: tuple[int, ...], model: LoadedModel) -> None:
    with pytest.raises(UsageError, match=r"\(patches, 3\)"):
        run_bag(model, np.zeros(shape, np.float32))
