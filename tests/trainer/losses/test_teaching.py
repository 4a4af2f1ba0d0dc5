"""The teaching loss, against a computation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hagmil.trainer.losses.teaching import teaching_loss


def test_the_loss_equals_the_cross_entropy_computed_in_numpy() -> None:
    generator = np.random.default_rng(0)
    target, scores = generator.dirichlet(np.ones(7)), generator.standard_normal(7) * 3
    target[2] = 0.0
    expected = -(target * np.log(np.exp(scores) / np.exp(scores).sum())).sum()
    assert teaching_loss(torch.from_numpy(target), torch.from_numpy(scores)).item() == pytest.approx(expected)


def test_the_gradient_is_the_difference_between_attention_and_target() -> None:
    target = torch.tensor([0.7, 0.3, 0.0])
    scores = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    teaching_loss(target, scores).backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.softmax(scores.detach(), dim=0) - target)


def test_a_single_kept_patch_has_no_loss() -> None:
    assert teaching_loss(torch.ones(1), torch.tensor([3.0])).item() == 0.0
