"""Transformer, losses and cascade agree with the published implementation of HAG-MIL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hagmil.trainer.losses.instance import InstanceLossKind, bag_loss, instance_loss, smooth_top1_svm
from hagmil.trainer.methods.selection import child_rows, keep_highest
from hagmil.trainer.models.iat import IntegratedAttentionTransformer, TrainingOutput
from tests.trainer.published_models import PublishedReference, features, load_reference, stage_model

TENSOR_TOLERANCE = 2e-4
LOSS_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def official(data_folder: Path) -> PublishedReference:
    return load_reference(data_folder / "conformance")


@pytest.fixture(scope="module")
def small(official: PublishedReference) -> IntegratedAttentionTransformer:
    return stage_model(official, "iat_small", "hagmil-small")


@pytest.fixture(scope="module")
def full(official: PublishedReference) -> IntegratedAttentionTransformer:
    return stage_model(official, "iat_full", "hagmil-full")


@pytest.fixture(scope="module")
def small_output(small: IntegratedAttentionTransformer) -> TrainingOutput:
    with torch.inference_mode():
        return small.forward_training(features(200, 64, "hagmil-small"))


@pytest.mark.parametrize("patches", [2, 17, 31, 32, 33, 48, 200])
def test_the_small_transformer_agrees(
    official: PublishedReference, small: IntegratedAttentionTransformer, patches: int
) -> None:
    _check_stage(official, small, f"iat_small_{patches}", features(patches, 64, "hagmil-small"))


@pytest.mark.parametrize("patches", [2, 7, 256, 511, 512, 513, 3000])
def test_the_full_transformer_agrees(
    official: PublishedReference, full: IntegratedAttentionTransformer, patches: int
) -> None:
    _check_stage(official, full, f"iat_full_{patches}", features(patches, 1024, "hagmil-full"))


@pytest.mark.parametrize("subtyping", [False, True], ids=["plain", "subtyping"])
@pytest.mark.parametrize(("published", "kind"), [("ce", "cross_entropy"), ("svm", "svm")])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_instance_loss_agrees(
    official: PublishedReference,
    small: IntegratedAttentionTransformer,
    small_output: TrainingOutput,
    label: int,
    published: str,
    kind: InstanceLossKind,
    subtyping: bool,
) -> None:
    expected = official.outputs[
        f"iat_small_200_instance_{published}_label{label}_{'subtyping' if subtyping else 'plain'}"
    ]
    with torch.inference_mode():
        loss = instance_loss(
            small_output.attention,
            small_output.hidden,
            list(small.instance_classifiers),
            label,
            kind=kind,
            k_sample=8,
            subtyping=subtyping,
        )
    assert loss.item() == pytest.approx(float(expected), rel=LOSS_TOLERANCE)


@pytest.mark.parametrize(("suffix", "smoothing"), [("", 0.0), ("_smooth0.1", 0.1)])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_bag_loss_agrees(
    official: PublishedReference, small_output: TrainingOutput, label: int, suffix: str, smoothing: float
) -> None:
    expected = float(official.outputs[f"iat_small_200_bagce{suffix}_label{label}"])
    loss = bag_loss(small_output.logits, label, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, rel=LOSS_TOLERANCE)


def test_the_svm_loss_agrees_on_a_hard_and_a_smooth_row(official: PublishedReference) -> None:
    scores = torch.tensor(official.settings["svm_case"], dtype=torch.float32)
    loss = smooth_top1_svm(scores, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(float(official.outputs["svm_hard_and_smooth"]), rel=LOSS_TOLERANCE)


def test_the_cascade_keeps_the_same_rows_and_gives_the_same_numbers(official: PublishedReference) -> None:
    keep, rows = official.settings["cascade"]["k"], None
    for level, patches in ((2, 37), (1, 148), (0, 592)):
        model = stage_model(official, "iat_small", f"hagmil-cascade-level{level}")
        table = features(patches, 64, f"hagmil-cascade-{level}")
        if rows is not None:
            np.testing.assert_array_equal(rows.numpy(), official.outputs[f"cascade_level{level}_index"])
        attention = _check_stage(official, model, f"cascade_level{level}", table if rows is None else table[rows])
        kept = keep_highest(attention, keep)
        rows = child_rows(kept if rows is None else rows[kept], 2)


def _check_stage(
    official: PublishedReference, model: IntegratedAttentionTransformer, key: str, bag: torch.Tensor
) -> torch.Tensor:
    with torch.inference_mode():
        logits, attention = model(bag)
    np.testing.assert_allclose(logits.numpy(), official.outputs[f"{key}_logits"], rtol=0, atol=TENSOR_TOLERANCE)
    np.testing.assert_allclose(attention.numpy(), official.outputs[f"{key}_attention"], rtol=0, atol=TENSOR_TOLERANCE)
    assert isinstance(attention, torch.Tensor)
    return attention
