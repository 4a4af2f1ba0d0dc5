"""Checkpointed blocks give the same gradients in less memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hagmil.trainer.checkpoints.checkpoint import LAST, load_checkpoint
from hagmil.trainer.compute.mixed_precision import TrainingPrecision, autocast
from hagmil.trainer.models.additive import AdditiveStageModel
from hagmil.trainer.models.build import CascadeModel
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import configured, write_cohort

CONFIG = IatConfig(widths=(16, 24, 8), heads=4, hidden_width=12, gate_width=6, value_kernel=5)


@pytest.fixture(params=[None, "transformer", "independent"])
def model(request: pytest.FixtureRequest) -> CascadeModel:
    torch.manual_seed(1)
    if request.param is None:
        return IntegratedAttentionTransformer(10, 3, CONFIG).train()
    additive = CONFIG.model_copy(update={"readout": "additive", "rows": request.param})
    return AdditiveStageModel(10, 3, additive).train()


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("patches", [1, 7, 40])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_with_dropout_are_bitwise_equal(
    model: CascadeModel, patches: int, precision: TrainingPrecision
) -> None:
    assert CONFIG.gate_dropout > 0
    assert CONFIG.attention_dropout > 0
    bag = torch.randn(patches, 10)
    plain = _gradients(model, bag, precision, checkpoint_blocks=False)
    again = _gradients(model, bag, precision, checkpoint_blocks=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_random_state_after_a_step_is_the_same(model: CascadeModel) -> None:
    after = []
    for checkpoint_blocks in (False, True):
        _gradients(model, torch.ones(5, 10), "fp32", checkpoint_blocks=checkpoint_blocks)
        after.append(torch.rand(3))
    assert torch.equal(after[0], after[1])


def test_a_checkpointed_block_keeps_only_its_input(model: CascadeModel) -> None:
    bag = torch.randn(300, 10)
    plain, checkpointed = (_kept_numbers(model, bag, checkpoint_blocks=way) for way in (False, True))
    if isinstance(model, AdditiveStageModel):
        assert checkpointed == 300 * (10 + sum(CONFIG.widths)) < plain / 3
    else:
        assert checkpointed < plain / 5


@pytest.mark.parametrize(("above", "expected"), [(None, 0), (4, 1), (3, 2), (0, 4)])
def test_only_bags_above_the_threshold_are_checkpointed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int | None, expected: int
) -> None:
    tree = write_cohort(tmp_path, parts={"train": 2, "val": 1, "test": 0})  # bags of 1 and 4 rows, and of 2 and 8
    seen: list[bool] = []
    forward = IntegratedAttentionTransformer.forward_training

    def watch(self: Any, features: torch.Tensor, *, checkpoint_blocks: bool = False) -> Any:
        if self.training:
            seen.append(checkpoint_blocks)
        return forward(self, features, checkpoint_blocks=checkpoint_blocks)

    monkeypatch.setattr(IntegratedAttentionTransformer, "forward_training", watch)
    train(configured(tree, checkpoint_blocks_above=above, schedule={"max_epochs": 1}))
    assert len(seen) == 4
    assert sum(seen) == expected


def test_training_with_checkpoints_gives_the_same_weights(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path)
    plain = configured(tree, out=str(tmp_path / "plain"), checkpoint_blocks_above=None)
    twice = configured(tree, out=str(tmp_path / "twice"), checkpoint_blocks_above=0)
    assert train(plain) == train(twice)
    digests = {load_checkpoint(config.out / LAST).card.weights_sha256 for config in (plain, twice)}
    assert len(digests) == 1
    assert plain.recipe_sha256() == twice.recipe_sha256()


def _gradients(
    model: CascadeModel, bag: torch.Tensor, precision: TrainingPrecision, *, checkpoint_blocks: bool
) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model.zero_grad(set_to_none=True)
    with autocast(precision, bag.device):
        output = model.forward_training(bag, checkpoint_blocks=checkpoint_blocks)
    (output.logits.float().sum() + output.attention.float().square().sum() + output.hidden.float().sum()).backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def _kept_numbers(model: CascadeModel, bag: torch.Tensor, *, checkpoint_blocks: bool) -> int:
    """Number of values, without weights, that autograd saves for the backward pass."""
    kept: dict[int, int] = {}
    weights = {weight.data_ptr() for weight in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.forward_training(bag, checkpoint_blocks=checkpoint_blocks)
    assert output.logits.requires_grad
    return sum(kept.values())
