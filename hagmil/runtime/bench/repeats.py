"""Warm-up, repeats, and the middle run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

LONG_S = 20.0
"""Work that takes this long is measured once: its warm-up is short beside it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """Some work, timed.

    Args:
        found: what the middle run gave.
        seconds: what it took.
        repeats_s: seconds of all runs, in the order in which they were taken.
    """

    found: T
    seconds: float
    repeats_s: tuple[float, ...]


def repeat(work: Callable[[], T], repeats: int, *, long_s: float = LONG_S) -> Timed[T]:
    """Do some work once to warm up, then several times, and take the middle run.

    Args:
        work: what to do; called at least twice, but for long work.
        repeats: how often it is timed, 1 or more.
        long_s: where the warm-up takes this many seconds, it is the measurement.

    Returns:
        The run of median time (the shorter of the two middle ones where ``repeats`` is even), and all times.
    """
    first = _timed(work)
    runs = [first] if first[0] >= long_s else [_timed(work) for _ in range(repeats)]
    seconds, found = middle(runs)
    return Timed(found, seconds, tuple(each for each, _ in runs))


def middle(runs: Sequence[tuple[float, T]]) -> tuple[float, T]:
    """The run of median time: the seconds and what it gave."""
    return sorted(runs, key=lambda run: run[0])[(len(runs) - 1) // 2]


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = perf_counter()
    found = work()
    return perf_counter() - start, found
