"""The additive stage model: its definition, gradients, configuration and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hagmil.trainer.checkpoints.checkpoint import build_models, load_checkpoint
from hagmil.trainer.models.additive import AdditiveStageModel
from hagmil.trainer.models.build import cascade_models
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import STAGES, configured, write_cohort
from tests.trainer.hierarchy_cohorts import cascade_with_hierarchy, write_hierarchy_cohort

ROWS = ("transformer", "independent")


def small_config(rows: str) -> IatConfig:
    """Sizes of a small additive model."""
    tree = {"widths": (16, 8), "heads": 4, "hidden_width": 12, "gate_width": 6, "readout": "additive", "rows": rows}
    return IatConfig.model_validate(tree)


@pytest.fixture(params=ROWS)
def model(request: pytest.FixtureRequest) -> AdditiveStageModel:
    torch.manual_seed(0)
    return AdditiveStageModel(10, 3, small_config(request.param)).eval()


@pytest.mark.parametrize("patches", [1, 2, 9, 40])
def test_evidence_sums_to_the_logits_without_the_bias(model: AdditiveStageModel, patches: int) -> None:
    output = model(torch.randn(patches, 10))
    assert output.attention.shape == (patches,)
    assert output.evidence.shape == (3, patches)
    torch.testing.assert_close(output.evidence.sum(dim=1) + model.readout.classifier.bias, output.logits)


def test_logits_are_the_attention_weighted_mean_of_the_logits_of_rows(model: AdditiveStageModel) -> None:
    seen: list[Tensor] = []
    model.readout.norm.register_forward_hook(lambda _module, _inputs, rows: seen.append(rows))
    output = model(torch.randn(7, 10))
    row_logits = model.readout.classifier(seen[0])  # (7, 3), with the bias: the weights sum to 1
    torch.testing.assert_close(torch.softmax(output.attention, dim=0) @ row_logits, output.logits)


def test_independent_rows_do_not_depend_on_other_patches() -> None:
    torch.manual_seed(0)
    model = AdditiveStageModel(10, 3, small_config("independent")).eval()
    bag = torch.randn(6, 10)
    torch.testing.assert_close(model(bag).attention[:2], model(bag[:2]).attention)


def test_rows_of_the_transformer_attend_to_one_another() -> None:
    torch.manual_seed(0)
    model = AdditiveStageModel(10, 3, small_config("transformer")).eval()
    bag = torch.randn(6, 10)
    assert not torch.allclose(model(bag).attention[:2], model(bag[:2]).attention)


def test_rows_of_the_transformer_are_those_of_the_published_blocks() -> None:
    config = small_config("transformer")
    ours, published = AdditiveStageModel(10, 3, config).eval(), IntegratedAttentionTransformer(10, 3, config).eval()
    shared = {name: value for name, value in published.state_dict().items() if name in ours.state_dict()}
    assert all(name in shared for name in ours.blocks.state_dict(prefix="blocks."))
    ours.load_state_dict(shared, strict=False)
    last = published.blocks[-1]
    ours.readout.norm.load_state_dict(last.get_submodule("norm").state_dict())
    ours.readout.gates.load_state_dict(last.get_submodule("gates").state_dict())
    bag = torch.randn(9, 10)
    torch.testing.assert_close(ours(bag).attention, published(bag).attention)


def test_training_forward_gives_the_same_logits_and_every_weight_gets_a_gradient(model: AdditiveStageModel) -> None:
    bag = torch.randn(20, 10)
    output = model.forward_training(bag)
    assert torch.equal(output.logits, model(bag).logits)
    assert output.hidden.shape == (20, 12)
    (output.logits.sum() + model.instance_classifiers[0](output.hidden).sum()).backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {f"instance_classifiers.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


def test_small_weights_of_a_large_bag_are_not_lost_in_half_precision(model: AdditiveStageModel) -> None:
    bag = torch.randn(1, 10).expand(3000, 10)
    exact, half = model(bag), model.half()(bag.half())
    assert half.evidence.dtype == torch.float32
    torch.testing.assert_close(half.evidence.sum(dim=1) + model.readout.classifier.bias, half.logits)
    torch.testing.assert_close(half.logits, exact.logits, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": "independent"}, "rows: independent requires readout: additive"),
        ({"readout": "additive", "widths": (12,)}, "divide into 8 heads"),
        ({"readout": "mean"}, "pooled"),
    ],
)
def test_invalid_forms_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IatConfig.model_validate(changes)


def test_widths_of_independent_rows_need_no_heads() -> None:
    config = IatConfig(readout="additive", rows="independent", widths=(12,))
    (model,) = cascade_models(config, feature_dim=5, classes=2, hierarchy=None, stages=1)
    assert isinstance(model, AdditiveStageModel)


def test_the_published_form_is_the_default() -> None:
    assert (IatConfig().readout, IatConfig().rows) == ("pooled", "transformer")


@pytest.mark.parametrize(("rows", "precision"), [("transformer", "bf16"), ("independent", "fp32")])
def test_training_learns_and_its_checkpoint_gives_additive_models(tmp_path: Path, rows: str, precision: str) -> None:
    tree = write_cohort(tmp_path, parts={"train": 8, "val": 4, "test": 4})
    form = {**tree["model"], "readout": "additive", "rows": rows}
    config = configured(
        tree,
        model=form,
        precision=precision,
        checkpoint_blocks_above=8,
        optimiser={"learning_rate": 3e-2},
        schedule={"max_epochs": 6},
    )
    metrics = train(config)
    assert metrics.test.auc == 1.0
    checkpoint = load_checkpoint(config.out)
    assert checkpoint.card.model == config.model
    assert all(isinstance(model, AdditiveStageModel) for model in build_models(checkpoint))


def test_a_hierarchy_of_labels_trains_additive_models(tmp_path: Path) -> None:
    parts = {"train": 4, "val": 4, "test": 0}
    tree = cascade_with_hierarchy(write_hierarchy_cohort(tmp_path, parts=parts, stages=STAGES))
    form = {**tree["model"], "readout": "additive", "rows": "independent"}
    config = configured(tree, model=form, schedule={"max_epochs": 1})
    train(config)
    bag = torch.zeros(3, load_checkpoint(config.out).card.feature_dim)
    assert [len(model(bag).evidence) for model in build_models(load_checkpoint(config.out))] == [2, 4]
