"""Random choices of a training, as pure functions of seed, epoch and position.

No generator state has to be saved: a resumed run draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ORDER, _STEP, _WEIGHTS = range(3)


def epoch_order(labels: Sequence[int], *, seed: int, epoch: int, weighted: bool) -> list[int]:
    """The slides of one epoch in order, as indices into the list of training slides.

    Args:
        labels: class of each training slide.
        seed: seed of the training.
        epoch: number of finished epochs.
        weighted: draw slides with replacement, with equal probability for each class; else each slide once.

    Returns:
        As many indices as there are slides.
    """
    generator = np.random.default_rng([seed, _ORDER, epoch])
    if not weighted:
        return [int(place) for place in generator.permutation(len(labels))]
    counts = np.bincount(labels)
    weights = 1.0 / counts[np.asarray(labels)]
    return [int(place) for place in generator.choice(len(labels), size=len(labels), p=weights / weights.sum())]


def steps_of_rank(
    order: Sequence[int], *, start: int, batch_size: int, rank: int, world_size: int
) -> tuple[list[list[int]], int]:
    """The remaining steps of an epoch for one of several processes that train together.

    The order is extended with its own first slides until its length is a multiple of ``world_size``, so that all
    processes take the same number of steps. A step takes up to ``batch_size`` slides for each process, in turn.

    Args:
        order: of :func:`epoch_order`.
        start: number of finished slides of the extended order.
        batch_size: slides per step and process.
        rank: rank of the process, from 0.
        world_size: number of processes.

    Returns:
        The indices of the process for each remaining step, and the length of the extended order.
    """
    length = -(-len(order) // world_size) * world_size
    padded = [order[place % len(order)] for place in range(length)]
    step = batch_size * world_size
    return [padded[first : first + step][rank::world_size] for first in range(start, length, step)], length


def step_seed(*, seed: int, epoch: int, position: int) -> int:
    """Seed of torch's generator for one training step, used by dropout.

    Args:
        seed: seed of the training.
        epoch: number of finished epochs.
        position: number of finished slides of this epoch, plus the rank of the process.
    """
    return _seed_of(seed, _STEP, epoch, position)


def weights_seed(*, seed: int) -> int:
    """Seed of torch's generator for the initial weights."""
    return _seed_of(seed, _WEIGHTS)


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
