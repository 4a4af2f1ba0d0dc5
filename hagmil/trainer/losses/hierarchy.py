"""Coarse and fine labels: the membership matrix and the bag alignment loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def membership(fine_to_coarse: Sequence[int], coarse: int) -> Tensor:
    """The matrix that sums fine classes into coarse classes.

    Args:
        fine_to_coarse: index of the coarse class of each fine class.
        coarse: number of coarse classes.

    Returns:
        float32 (coarse, fine): 1 where the fine class belongs to the coarse class, else 0.
    """
    return F.one_hot(torch.tensor(fine_to_coarse), coarse).mT.float()  # (fine, coarse) -> (coarse, fine)


def bag_alignment_loss(fine_logits: Tensor, coarse_labels: Tensor, members: Tensor) -> Tensor:
    """Cross entropy between fine probabilities summed into coarse classes and the coarse label.

    The sums are used as logits, as in the published code of HMIL.

    Args:
        fine_logits: float (bags, fine).
        coarse_labels: int64 (bags,).
        members: float (coarse, fine), from :func:`membership`.

    Returns:
        float scalar.
    """
    coarse_probabilities = torch.softmax(fine_logits, dim=1) @ members.mT  # (bags, fine) -> (bags, coarse)
    return F.cross_entropy(coarse_probabilities, coarse_labels)
