"""The losses between the stages of a cascade with a hierarchy."""

from __future__ import annotations

import math

import pytest
import torch

from hagmil.trainer.losses.alignment import stage_alignment_loss, verdict_alignment_loss
from hagmil.trainer.losses.hierarchy import membership


def test_attention_that_is_shared_out_alike_costs_nothing() -> None:
    parents = torch.tensor([0.3, 2.0, -1.0])
    children = (parents - math.log(4)).repeat_interleave(4)  # each parent's share, split evenly over its children
    assert stage_alignment_loss(parents, children).item() == pytest.approx(0, abs=1e-6)


def test_it_does_not_matter_which_child_has_the_attention() -> None:
    parents = torch.tensor([1.0, 0.0])
    children = torch.tensor([5.0, 1.0, -2.0, 0.5, 3.0, 0.0, 0.0, 0.0])
    shuffled = children[[3, 1, 0, 2, 7, 4, 6, 5]]
    assert torch.allclose(stage_alignment_loss(parents, children), stage_alignment_loss(parents, shuffled))


def test_attention_on_other_patches_costs_up_to_one() -> None:
    loss = stage_alignment_loss(torch.tensor([50.0, 0.0]), torch.tensor([0.0] * 4 + [50.0] * 4))
    assert loss.item() == pytest.approx(1, abs=1e-6)


def test_by_hand_two_parents_and_a_factor_of_one_and_a_half_between_their_shares() -> None:
    parents = torch.log(torch.tensor([0.6, 0.4]))
    children = torch.log(torch.tensor([0.1, 0.1, 0.1, 0.1, 0.15, 0.15, 0.15, 0.15]))
    expected = 1 - (0.6 * 0.4 + 0.4 * 0.6) / (0.6**2 + 0.4**2)
    assert stage_alignment_loss(parents, children).item() == pytest.approx(expected, rel=1e-5)


def test_one_kept_patch_is_always_aligned_and_has_a_finite_gradient() -> None:
    children = torch.tensor([1.0, -2.0, 0.0, 4.0], requires_grad=True)
    loss = stage_alignment_loss(torch.tensor([3.0]), children)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert children.grad is not None
    assert torch.isfinite(children.grad).all()


def test_the_fine_verdict_is_drawn_to_its_coarse_class_and_to_no_fine_class_in_it() -> None:
    members = membership((0, 0, 1), 2)
    logits = torch.zeros(3, requires_grad=True)
    verdict_alignment_loss(logits, 0, members).backward()
    assert logits.grad is not None
    assert logits.grad[0] == logits.grad[1] < 0 < logits.grad[2]
