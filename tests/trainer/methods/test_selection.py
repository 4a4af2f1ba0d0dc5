"""Selection of rows by attention, and their children."""

from __future__ import annotations

import torch

from hagmil.trainer.methods.selection import child_rows, keep_highest


def test_the_highest_scores_come_first_and_equal_scores_keep_their_order() -> None:
    attention = torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 2.0])
    assert keep_highest(attention, 5).tolist() == [1, 3, 2, 5, 0]


def test_many_equal_scores_keep_their_order() -> None:
    assert keep_highest(torch.zeros(1000), 700).tolist() == list(range(700))


def test_a_bag_with_fewer_patches_than_keep_is_kept_whole() -> None:
    assert keep_highest(torch.tensor([0.5]), 10).tolist() == [0]


def test_children_of_a_row_are_consecutive() -> None:
    assert child_rows(torch.tensor([3, 0]), 2).tolist() == [12, 13, 14, 15, 0, 1, 2, 3]
    assert child_rows(torch.tensor([1]), 4).tolist() == list(range(16, 32))
