"""Targets of the teaching loss: where the attention of the finest stage lies, for the kept patches of coarser stages.

1. The softmax of the finest stage's attention distributes a mass of 1 over the rows of its bag.
2. The mass of a kept patch of the next coarser stage is the sum over its children.
3. The bag of that stage consists of kept patches, with this mass, and others, whose mass is 0. Step 2 is repeated with
   this bag for the next coarser stage. A kept patch none of whose descendants were kept thus has the mass 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def teaching_targets(attention: Tensor, kept: Sequence[Tensor], bag_sizes: Sequence[int]) -> list[Tensor]:
    """Compute the target of each stage but the finest.

    Args:
        attention: float (patches,), raw attention of the finest stage.
        kept: int64 (kept,) for each stage but the finest, coarse to fine: kept rows of the bag of the stage. The bag of
            the next stage has the children of these patches, f² consecutive rows each, in the same order.
        bag_sizes: number of patches in the bag of each of these stages.

    Returns:
        float (kept,) for each of these stages, coarse to fine, on the device of ``attention`` and without a gradient;
        each has the sum 1.
    """
    mass = torch.softmax(attention.detach(), dim=0)  # step 1
    targets: list[Tensor] = []
    for rows, size in zip(reversed(kept), reversed(bag_sizes), strict=True):
        target = mass.reshape(len(rows), -1).sum(dim=1)  # step 2: (kept·f²,) -> (kept,)
        targets.insert(0, target)
        mass = target.new_zeros(size)  # step 3
        mass[rows.to(mass.device)] = target
    return targets
