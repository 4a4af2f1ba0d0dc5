"""Teaching loss: the finest stage teaches a coarser stage which of its patches to select (ours, docs/training.md)."""

from __future__ import annotations

import torch
from torch import Tensor


def teaching_loss(target: Tensor, scores: Tensor) -> Tensor:
    """Cross entropy between a target distribution and the softmax of a stage's own attention.

    Args:
        target: float (kept,), at least 0 with sum 1, without a gradient.
        scores: float (kept,), raw attention of the stage for the patches that it kept, in the same order.

    Returns:
        A scalar, at least the entropy of the target.
    """
    return -(target * torch.log_softmax(scores, dim=0)).sum()
