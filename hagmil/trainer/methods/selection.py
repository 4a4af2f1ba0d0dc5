"""Selection of the rows of the next stage, in training.

Kept rows are in the order of their attention, highest first, as in the published code: the bag of the next stage
starts with the children of the patch with the highest attention. The order matters to the transformer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def keep_highest(attention: Tensor, keep: int) -> Tensor:
    """Select the rows with the highest attention.

    Args:
        attention: float (patches,).
        keep: number of rows to keep; a bag with no more rows is kept whole.

    Returns:
        int64 (min(keep, patches),), highest attention first; of equal scores, the earlier row first.
    """
    return torch.argsort(attention, descending=True, stable=True)[:keep]


def child_rows(rows: Tensor, factor: int) -> Tensor:
    """Expand rows of a stage to the rows of their children at the next finer stage.

    Args:
        rows: int64 (n,), rows of the full table of a stage, in quadtree order.
        factor: f, the ratio of the spacings of the two stages.

    Returns:
        int64 (n·f²,): f²·i ... f²·i + f² - 1 for each row i, in the order of ``rows``.
    """
    children = factor * factor
    return (rows[:, None] * children + torch.arange(children, device=rows.device)).flatten()  # (n, f²) -> (n·f²,)


def random_keep(patches: int) -> int:
    """Draw the number of kept patches of a training step from torch's global generator.

    Args:
        patches: n, the number of patches of the bag, at least 1.

    Returns:
        n^u, rounded, with u uniform on 0..1: from 1 to n, with all orders of magnitude equally frequent.
    """
    exponent = torch.rand((), dtype=torch.float64).item()
    return round(math.pow(patches, exponent))
