"""Alignment losses between the stages of a cascade with a hierarchy of labels."""

from __future__ import annotations

import math

import pytest
import torch

from hagmil.trainer.losses.alignment import stage_alignment_loss, verdict_alignment_loss
from hagmil.trainer.losses.hierarchy import membership


def test_equal_attention_has_no_loss() -> None:
    parents = torch.tensor([0.3, 2.0, -1.0])
    children = (parents - math.log(4)).repeat_interleave(4)  # the attention of each parent, in equal parts
    assert stage_alignment_loss(parents, children).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_does_not_depend_on_which_child_has_the_attention() -> None:
    parents = torch.tensor([1.0, 0.0])
    children = torch.tensor([5.0, 1.0, -2.0, 0.5, 3.0, 0.0, 0.0, 0.0])
    shuffled = children[[3, 1, 0, 2, 7, 4, 6, 5]]
    assert torch.allclose(stage_alignment_loss(parents, children), stage_alignment_loss(parents, shuffled))


def test_attention_on_other_patches_has_a_loss_close_to_one() -> None:
    loss = stage_alignment_loss(torch.tensor([50.0, 0.0]), torch.tensor([0.0] * 4 + [50.0] * 4))
    assert loss.item() == pytest.approx(1, abs=1e-6)


def test_the_loss_of_two_parents_equals_the_value_computed_by_hand() -> None:
    parents = torch.log(torch.tensor([0.6, 0.4]))
    children = torch.log(torch.tensor([0.1, 0.1, 0.1, 0.1, 0.15, 0.15, 0.15, 0.15]))
    expected = 1 - (0.6 * 0.4 + 0.4 * 0.6) / (0.6**2 + 0.4**2)
    assert stage_alignment_loss(parents, children).item() == pytest.approx(expected, rel=1e-5)


def test_a_single_kept_patch_has_no_loss_and_a_finite_gradient() -> None:
    children = torch.tensor([1.0, -2.0, 0.0, 4.0], requires_grad=True)
    loss = stage_alignment_loss(torch.tensor([3.0]), children)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert children.grad is not None
    assert torch.isfinite(children.grad).all()


def test_bag_alignment_prefers_the_coarse_class_and_no_fine_class_in_it() -> None:
    members = membership((0, 0, 1), 2)
    logits = torch.zeros(3, requires_grad=True)
    verdict_alignment_loss(logits, 0, members).backward()
    assert logits.grad is not None
    assert logits.grad[0] == logits.grad[1] < 0 < logits.grad[2]
