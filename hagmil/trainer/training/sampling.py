"""What is random in a training, as functions of seed, epoch and place: nothing has to be remembered.

A run that is resumed draws exactly what it would have drawn, wherever it was stopped, and so would a process
that takes over a part of the slides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ORDER, _STEP, _WEIGHTS = range(3)


def epoch_order(labels: Sequence[int], *, seed: int, epoch: int, weighted: bool) -> list[int]:
    """The slides of one epoch, as places in the list of training slides.

    Args:
        labels: class of each training slide.
        seed: the training's.
        epoch: epochs done before this one.
        weighted: draw as many slides with replacement, each class as often as any other; else each slide
            once.

    Returns:
        As many places as there are slides.
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
    """What is left of an epoch's steps for one of several processes that train together.

    The order is extended with its own first slides until its length is a multiple of ``world_size``, so that all
    processes take the same number of steps. A step takes up to ``batch_size`` slides for each process, in turn.

    Args:
        order: of :func:`epoch_order`.
        start: slides of the lengthened order that are done.
        batch_size: slides a step and process.
        rank: which process, from 0.
        world_size: number of processes.

    Returns:
        The process's places for each step left, and the length of the lengthened order.
    """
    length = -(-len(order) // world_size) * world_size
    padded = [order[place % len(order)] for place in range(length)]
    step = batch_size * world_size
    return [padded[first : first + step][rank::world_size] for first in range(start, length, step)], length


def step_seed(*, seed: int, epoch: int, position: int) -> int:
    """Seed of torch's generator for one training step: what its dropout draws.

    Args:
        seed: the training's.
        epoch: epochs done before this one.
        position: slides of this epoch done before this step; for one of several processes that train together, plus
            its rank.
    """
    return _spread(seed, _STEP, epoch, position)


def weights_seed(*, seed: int) -> int:
    """Seed of torch's generator for the models' first weights."""
    return _spread(seed, _WEIGHTS)


def _spread(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
