"""Which rows a stage hands to the next one, in training.

Kept rows stay in the order of their attention, highest first, as in the published code: the next stage's bag
begins with the children of the patch that was looked at most. That order matters, since the transformer sees
a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_highest(attention: Tensor, keep: int) -> Tensor:
    """The rows of highest attention.

    Args:
        attention: float (patches,).
        keep: how many to keep; all of a bag that has no more.

    Returns:
        int64 (min(keep, patches),), highest attention first; where two are equal, the earlier row first.
    """
    return torch.argsort(attention, descending=True, stable=True)[:keep]


def child_rows(rows: Tensor, factor: int) -> Tensor:
    """The next finer stage's rows that lie inside the given ones.

    Args:
        rows: int64 (n,), rows of a stage's full quadtree table.
        factor: f, the ratio of the two stages' spacings.

    Returns:
        int64 (n·f²,), for each row i in turn f²·i ... f²·i + f² - 1.
    """
    children = factor * factor
    return (rows[:, None] * children + torch.arange(children, device=rows.device)).flatten()  # (n, f²) -> (n·f²,)
