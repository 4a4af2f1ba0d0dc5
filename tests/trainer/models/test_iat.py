"""Shapes, dropout, gradients and configuration of the Integrated Attention Transformer."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

TINY = IatConfig(widths=(16, 24, 8, 16), heads=4, hidden_width=12, gate_width=6)


@pytest.fixture
def model() -> IntegratedAttentionTransformer:
    torch.manual_seed(0)
    return IntegratedAttentionTransformer(10, 3, TINY).eval()


@pytest.mark.parametrize("patches", [1, 2, 3, 4, 8, 12, 13, 100])
def test_a_bag_of_any_size_gives_finite_logits_and_one_score_per_patch(
    model: IntegratedAttentionTransformer, patches: int
) -> None:
    output = model.forward_training(torch.randn(patches, 10))
    assert output.logits.shape == (3,)
    assert output.attention.shape == (patches,)
    assert output.hidden.shape == (patches, 12)
    assert all(torch.isfinite(tensor).all() for tensor in output)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_a_bag_of_equal_patches_gives_finite_outputs(model: IntegratedAttentionTransformer, value: float) -> None:
    logits, attention = model(torch.full((30, 10), value))
    assert torch.isfinite(logits).all()
    assert torch.isfinite(attention).all()


def test_inference_and_training_forward_give_the_same_outputs(model: IntegratedAttentionTransformer) -> None:
    bag = torch.randn(20, 10)
    logits, attention = model(bag)
    output = model.forward_training(bag)
    assert torch.equal(logits, output.logits)
    assert torch.equal(attention, output.attention)


def test_dropout_applies_in_training_only(model: IntegratedAttentionTransformer) -> None:
    bag = torch.randn(20, 10)
    assert torch.equal(model(bag).logits, model(bag).logits)
    model.train()
    assert not torch.equal(model(bag).logits, model(bag).logits)


def test_every_weight_except_unused_instance_classifiers_gets_a_gradient(
    model: IntegratedAttentionTransformer,
) -> None:
    output = model.forward_training(torch.randn(20, 10))
    (output.logits.sum() + model.instance_classifiers[0](output.hidden).sum()).backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {f"instance_classifiers.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


def test_the_residual_scale_is_a_constant_in_the_state_dict(
    model: IntegratedAttentionTransformer,
) -> None:
    scale = model.state_dict()["blocks.0.residual_scale"]
    assert scale.tolist() == pytest.approx([1.759567141532898])
    assert "blocks.0.residual_scale" not in dict(model.named_parameters())


def test_the_default_sizes_are_the_published_sizes() -> None:
    config = IatConfig()
    assert config.widths == (1024, 1536, 512, 1024)
    assert config.landmarks == (512, 768, 256, 512)
    assert (config.heads, config.hidden_width, config.gate_width) == (8, 512, 256)


@pytest.mark.parametrize("wrong", [{"widths": (12,)}, {"widths": ()}, {"value_kernel": 4}, {"depth": 3}])
def test_invalid_sizes_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        IatConfig.model_validate(wrong)
