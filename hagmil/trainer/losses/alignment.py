"""Alignment losses between the stages of a cascade with a hierarchy of labels (an addition; docs/hierarchy.md).

1. Bag alignment, at the finest stage: cross entropy between the fine probabilities summed into coarse classes and the
   coarse label. This is the function of HMIL (Jin et al. 2025, section III).
2. Instance alignment, at every stage but the coarsest: 1 - cosine, over the patches that the coarser stage kept,
   between the attention of the coarser stage and that of this stage summed over the children of each patch. It is
   between 0 (same direction) and 1.

The coarser stage is the teacher: it has already taken its step, as in the recipe of HAG-MIL, and gets no gradient. Only
the graph of one stage is therefore in memory at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hagmil.trainer.losses.hierarchy import bag_alignment_loss


def verdict_alignment_loss(fine_logits: Tensor, coarse_label: int, members: Tensor) -> Tensor:
    """Bag alignment loss of one bag (step 1).

    Args:
        fine_logits: float (fine,).
        coarse_label: index of the coarse class.
        members: float (coarse, fine), 1 where the fine class belongs to the coarse class.

    Returns:
        A scalar.
    """
    label = torch.tensor([coarse_label], device=fine_logits.device)
    return bag_alignment_loss(fine_logits[None], label, members)  # (fine,) -> (1, fine)


def stage_alignment_loss(parent_scores: Tensor, child_scores: Tensor) -> Tensor:
    """Instance alignment loss of one bag between two stages (step 2).

    Args:
        parent_scores: float (kept,), raw attention of the coarser stage for the patches that it kept, in the order of
            their children; without a gradient.
        child_scores: float (kept·f²,), raw attention of this stage; the children of a kept patch are f² consecutive
            rows.

    Returns:
        A scalar, from 0 (same direction) to 1.
    """
    target = torch.softmax(parent_scores, dim=0)
    summed = torch.softmax(child_scores, dim=0).reshape(len(parent_scores), -1).sum(dim=1)  # (kept·f²,) -> (kept,)
    return 1 - F.cosine_similarity(target, summed, dim=0)
