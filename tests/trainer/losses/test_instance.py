"""Bag loss, smooth top-1 SVM and instance loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hagmil.trainer.losses.instance import InstanceLossKind, bag_loss, instance_loss, smooth_top1_svm

KINDS: tuple[InstanceLossKind, ...] = ("cross_entropy", "svm")


@pytest.fixture
def classifiers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(4, 2) for _ in range(3)]


def _loss(
    attention: torch.Tensor,
    hidden: torch.Tensor,
    classifiers: list[nn.Module],
    *,
    kind: InstanceLossKind = "cross_entropy",
    k_sample: int = 2,
    subtyping: bool = False,
) -> torch.Tensor:
    return instance_loss(attention, hidden, classifiers, 1, kind=kind, k_sample=k_sample, subtyping=subtyping)


def test_label_smoothing_distributes_a_share_of_the_target() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0])
    log_probabilities = torch.log_softmax(logits, dim=0)
    expected = -(0.9 * log_probabilities[2] + 0.1 * log_probabilities.mean())
    assert bag_loss(logits, 2, label_smoothing=0.1).item() == pytest.approx(expected.item())


def test_the_highest_patches_are_positive_and_the_lowest_negative(classifiers: list[nn.Module]) -> None:
    attention = torch.tensor([0.0, 5.0, 1.0, -3.0, 4.0, 2.0])
    hidden = torch.randn(6, 4)
    scores = classifiers[1](hidden[[1, 4, 0, 3]])
    expected = F.cross_entropy(scores, torch.tensor([1, 1, 0, 0]))
    assert _loss(attention, hidden, classifiers).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("patches", "positives", "negatives"), [(2, 1, 1), (3, 2, 1), (5, 3, 2), (16, 8, 8)])
def test_a_small_bag_is_split_in_half(
    classifiers: list[nn.Module], patches: int, positives: int, negatives: int
) -> None:
    attention, hidden = torch.arange(patches, 0, -1.0), torch.randn(patches, 4)
    scores = classifiers[1](torch.cat([hidden[:positives], hidden[patches - negatives :]]))
    expected = F.cross_entropy(scores, torch.tensor([1] * positives + [0] * negatives))
    assert _loss(attention, hidden, classifiers, k_sample=8).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subtyping", [False, True])
def test_a_single_patch_is_positive_for_the_class_of_its_bag(
    classifiers: list[nn.Module], kind: InstanceLossKind, subtyping: bool
) -> None:
    hidden = torch.randn(1, 4)
    loss = _loss(torch.zeros(1), hidden, classifiers, kind=kind, subtyping=subtyping)
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())
    own = classifiers[1].get_parameter("bias").grad
    assert own is not None
    assert own[1] < 0 < own[0]
    assert (classifiers[0].get_parameter("bias").grad is not None) == subtyping


def test_kind_none_is_zero_without_a_gradient(classifiers: list[nn.Module]) -> None:
    loss = _loss(torch.zeros(6), torch.randn(6, 4), classifiers, kind="none")
    assert loss.item() == 0
    assert not loss.requires_grad


def test_the_instance_loss_gives_attention_no_gradient(classifiers: list[nn.Module]) -> None:
    attention = torch.randn(6, requires_grad=True)
    _loss(attention, torch.randn(6, 4, requires_grad=True), classifiers).backward()  # type: ignore[no-untyped-call]
    assert attention.grad is None


def test_the_smooth_svm_approaches_the_margin_loss_at_low_temperature() -> None:
    scores, labels = torch.tensor([[0.2, 0.9, -0.5], [3.0, 0.0, 1.0]]), torch.tensor([0, 0])
    margin_loss = torch.stack([torch.tensor(0.9 + 1 - 0.2), torch.tensor(0.0)]).mean()
    assert smooth_top1_svm(scores, labels, temperature=1e-3).item() == pytest.approx(margin_loss.item(), abs=1e-5)
    assert smooth_top1_svm(scores, labels).item() > margin_loss.item()


def test_scores_far_apart_give_a_finite_loss_and_a_gradient_of_one() -> None:
    scores = torch.tensor([[1e6, -1e6]], requires_grad=True)
    loss = smooth_top1_svm(scores, torch.tensor([1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(2e6)
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1.0, -1.0]]
