"""Losses that hold the stages of a cascade together where labels have a hierarchy (ours; docs/hierarchy.md).

1. Bag alignment, at the finest stage: its fine probabilities, summed into coarse classes, against the coarse
   label. It is HMIL's (Jin et al. 2025, section III), and the same function.
2. Instance alignment, at every stage but the coarsest: how the stage shares its attention out to the patches
   that the coarser stage kept (summed over each one's children), against how the coarser stage did. 1 -
   cosine over the kept patches, from 0 (alike) to 1.

The coarser stage is the teacher: it has taken its step already, as in HAG-MIL's recipe, and no gradient goes
back to it. So no two stages' graphs are in memory together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hagmil.trainer.losses.hierarchy import bag_alignment_loss


def verdict_alignment_loss(fine_logits: Tensor, coarse_label: int, members: Tensor) -> Tensor:
    """Fine probabilities summed into coarse classes, against the coarse label of one bag (step 1).

    Args:
        fine_logits: float (fine,).
        coarse_label: index of the coarse class.
        members: float (coarse, fine), 1 where the fine class belongs to the coarse one.

    Returns:
        A scalar.
    """
    label = torch.tensor([coarse_label], device=fine_logits.device)
    return bag_alignment_loss(fine_logits[None], label, members)  # (fine,) -> (1, fine)


def stage_alignment_loss(parent_scores: Tensor, child_scores: Tensor) -> Tensor:
    """How far a stage's attention is from the coarser stage's, over the patches that the coarser one kept
    (step 2).

    Args:
        parent_scores: float (kept,), the coarser stage's raw attention of the patches that it kept, in the
            order in which their children follow; without a gradient.
        child_scores: float (kept·f²,), this stage's raw attention; the children of a kept patch are f²
            consecutive rows.

    Returns:
        A scalar, from 0 (the same shares) to 1.
    """
    taught = torch.softmax(parent_scores, dim=0)
    shares = torch.softmax(child_scores, dim=0).reshape(len(parent_scores), -1).sum(dim=1)  # (kept·f²,) -> (kept,)
    return 1 - F.cosine_similarity(taught, shares, dim=0)
