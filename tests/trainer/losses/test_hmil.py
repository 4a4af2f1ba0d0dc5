"""Losses and curriculum of HMIL: agreement with the published code, weights, and disabled losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hagmil.trainer.losses.hierarchy import bag_alignment_loss, membership
from hagmil.trainer.losses.hmil import (
    BagBatch,
    HmilLossConfig,
    batch_bags,
    contrastive_loss,
    curriculum_share,
    hmil_losses,
    instance_alignment_loss,
    loss_weights,
    temperature_at,
)
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from tests.trainer.published_models import (
    PublishedReference,
    features,
    load_reference,
    published_hmil_to_ours,
    weights,
)

SALT = "hagmil-hmil"
TOLERANCE = 1e-4
EPOCHS = 200
HIERARCHY = (0, 0, 1)
LABELS = torch.tensor([0, 2])
NAMES = ("coarse", "fine", "bag_alignment", "instance_alignment", "contrastive")


@pytest.fixture(scope="module")
def official(data_folder: Path) -> PublishedReference:
    return load_reference(data_folder / "conformance")


@pytest.fixture(scope="module")
def published_batch(official: PublishedReference) -> BagBatch:
    model = HierarchicalMil(1024, 3, 7).eval()
    model.load_state_dict(published_hmil_to_ours(weights(official, "hmil", SALT)))
    with torch.inference_mode():
        return batch_bags([model.forward_training(features(count, 1024, SALT)) for count in (5, 300, 1500)])


@pytest.fixture
def batch() -> BagBatch:
    torch.manual_seed(0)
    config = HmilConfig(bottleneck_width=6, fine_width=5, coarse_gate_width=4, fine_gate_width=3)
    model = HierarchicalMil(8, 2, 3, config)
    return batch_bags([model.forward_training(torch.randn(patches, 8)) for patches in (1, 6)])


@pytest.mark.parametrize("name", ["coarse", "fine", "bag_alignment", "instance_alignment"])
def test_the_losses_of_a_batch_agree(official: PublishedReference, published_batch: BagBatch, name: str) -> None:
    mapping = official.settings["hmil"]["mapping"]
    hierarchy = [mapping[str(fine)] for fine in range(7)]
    losses = hmil_losses(published_batch, torch.tensor([0, 4, 6]), hierarchy, epoch=0, epochs=EPOCHS)
    expected = float(official.outputs[f"hmil_loss_{name}"])
    assert getattr(losses, name).item() == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("epoch", [0, 50, 100, 199])
def test_the_contrastive_loss_and_its_temperature_agree(
    official: PublishedReference, published_batch: BagBatch, epoch: int
) -> None:
    three = published_batch.fine_embeddings
    five = torch.cat([three, three[:1].flip(-1), three[1:2].roll(3, -1)])
    temperature = temperature_at(epoch, EPOCHS)
    loss = contrastive_loss(five, torch.tensor([0, 4, 6, 0, 4]), temperature)
    assert temperature == pytest.approx(float(official.outputs[f"hmil_tau_epoch{epoch}"]), rel=TOLERANCE)
    expected = float(official.outputs[f"hmil_contrastive_epoch{epoch}"])
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE)


def test_the_curriculum_goes_from_coarse_to_contrastive() -> None:
    assert curriculum_share(0, 10) == 1
    assert curriculum_share(5, 10) == 0.75
    assert loss_weights(0, 10) == (1, 1, 1, 1, 0)
    assert loss_weights(5, 10) == (0.75, 1, 1, 1, 0.25)


def test_without_the_curriculum_all_weights_are_constant() -> None:
    config = HmilLossConfig(coarse=2, contrastive=3, curriculum=False)
    assert loss_weights(0, 10, config) == loss_weights(9, 10, config) == (2, 1, 1, 1, 3)


def test_the_temperature_follows_one_cosine_wave() -> None:
    assert [temperature_at(epoch, 4) for epoch in range(4)] == pytest.approx([1, 0.55, 0.1, 0.55])
    config = HmilLossConfig(lowest_temperature=0.2, highest_temperature=0.6)
    assert temperature_at(0, 4, config) == pytest.approx(0.6)
    assert temperature_at(2, 4, config) == pytest.approx(0.2)


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_total_is_the_weighted_sum(batch: BagBatch, epoch: int) -> None:
    config = HmilLossConfig(coarse=0.5, fine=2, bag_alignment=3, instance_alignment=4, contrastive=5)
    losses = hmil_losses(batch, LABELS, HIERARCHY, epoch=epoch, epochs=4, config=config)
    parts = zip(loss_weights(epoch, 4, config), losses[1:], strict=True)
    expected = sum(weight * loss.item() for weight, loss in parts)
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    assert all(loss.item() > 0 for loss in losses)


@pytest.mark.parametrize("off", NAMES)
def test_a_loss_with_weight_0_is_not_computed(batch: BagBatch, off: str) -> None:
    whole = hmil_losses(batch, LABELS, HIERARCHY, epoch=2, epochs=4)
    less = hmil_losses(batch, LABELS, HIERARCHY, epoch=2, epochs=4, config=_without(off))
    assert getattr(less, off).item() == 0
    for name in NAMES:
        if name != off:
            assert torch.equal(getattr(less, name), getattr(whole, name))
    difference = getattr(loss_weights(2, 4), off) * getattr(whole, off).item()
    assert whole.total.item() - less.total.item() == pytest.approx(difference, rel=1e-4)


def test_every_weight_gets_a_gradient_from_the_total() -> None:
    torch.manual_seed(0)
    model = HierarchicalMil(8, 2, 3, HmilConfig(bottleneck_width=6, fine_width=5))
    batch = batch_bags([model.forward_training(torch.randn(patches, 8)) for patches in (4, 6)])
    hmil_losses(batch, LABELS, HIERARCHY, epoch=2, epochs=4).total.backward()  # type: ignore[no-untyped-call]
    # Biases of scores and classifiers are left out: they cancel in the softmax.
    names = [name for name, _ in model.named_parameters() if not name.endswith(("score.bias", "classifier.bias"))]
    without = [name for name in names if not _gradient(model, name).any()]
    assert without == []


def test_membership_sums_fine_classes_into_coarse_classes() -> None:
    summed = membership((1, 0, 1), 2) @ torch.tensor([1.0, 10.0, 100.0])
    assert summed.tolist() == [10, 101]


def test_attention_that_follows_the_hierarchy_has_no_loss() -> None:
    members = membership(HIERARCHY, 2)
    fine = torch.rand(3, 5)
    assert instance_alignment_loss([members @ fine], [fine], members).item() == pytest.approx(0, abs=1e-6)


def test_attention_on_other_classes_has_loss_one() -> None:
    coarse, fine = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [0.5], [0.0]])
    assert instance_alignment_loss([coarse], [fine], membership(HIERARCHY, 2)).item() == pytest.approx(1)


def test_each_bag_weighs_the_same_in_the_instance_alignment() -> None:
    members = membership(HIERARCHY, 2)
    aligned = (torch.ones(2, 9), torch.tensor([[0.5], [0.5], [1.0]]).expand(3, 9))
    opposed = (torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0], [0.0]]))
    loss = instance_alignment_loss([aligned[0], opposed[0]], [aligned[1], opposed[1]], members)
    assert loss.item() == pytest.approx(0.5, abs=1e-6)


def test_bag_alignment_uses_probabilities_as_logits_as_published() -> None:
    certain = torch.tensor([[0.0, 0.0, 50.0]])  # all in coarse class 1
    loss = bag_alignment_loss(certain, torch.tensor([1]), membership(HIERARCHY, 2))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)


def test_close_bags_of_one_label_have_a_lower_contrastive_loss() -> None:
    near = _embeddings([0.0, 0.1])
    far = _embeddings([0.0, 1.5])
    labels = torch.tensor([1, 1])
    assert contrastive_loss(near, labels, 0.1) < contrastive_loss(far, labels, 0.1)


def test_a_single_bag_has_its_other_class_embeddings_as_positives() -> None:
    loss = contrastive_loss(_embeddings([0.3]), torch.tensor([0]), 0.5)
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    "settings",
    [
        {"fine": -1},
        {"coarse": math.inf},
        {"lowest_temperature": 0},
        {"lowest_temperature": 2},
        {"coarse": 0, "fine": 0, "bag_alignment": 0},
        {"fines": 1},
    ],
    ids=["negative", "infinite", "temperature 0", "temperatures crossed", "nothing left", "unknown key"],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HmilLossConfig(**settings)


def _gradient(model: HierarchicalMil, name: str) -> Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    return gradient


def _without(name: str) -> HmilLossConfig:
    return HmilLossConfig.model_validate({name: 0})


def _embeddings(angles: list[float]) -> Tensor:
    """One bag for each angle, with two close class embeddings on the unit circle."""
    turns = torch.tensor([[angle, angle + 0.2] for angle in angles])
    return torch.stack([turns.cos(), turns.sin()], dim=-1)
