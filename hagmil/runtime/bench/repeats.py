"""Timing with a warm-up and repeats; the run with the median time counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

LONG_S = 20.0
"""Work that takes this long runs once: the cost of a cold start is small in comparison."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """Result and time of repeated work.

    Args:
        found: the result of the run with the median time.
        seconds: its time.
        repeats_s: seconds of all runs, in order.
    """

    found: T
    seconds: float
    repeats_s: tuple[float, ...]


def repeat(work: Callable[[], T], repeats: int, *, long_s: float = LONG_S) -> Timed[T]:
    """Run some work once to warm up, then ``repeats`` times.

    Args:
        work: the work.
        repeats: number of timed runs, at least 1.
        long_s: if the warm-up takes this many seconds, it is used as the only timed run.

    Returns:
        The run with the median time (the shorter of the two middle ones where ``repeats`` is even), and all times.
    """
    first = _timed(work)
    runs = [first] if first[0] >= long_s else [_timed(work) for _ in range(repeats)]
    seconds, found = median_run(runs)
    return Timed(found, seconds, tuple(each for each, _ in runs))


def median_run(runs: Sequence[tuple[float, T]]) -> tuple[float, T]:
    """Return seconds and result of the run with the median time."""
    return sorted(runs, key=lambda run: run[0])[(len(runs) - 1) // 2]


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = perf_counter()
    found = work()
    return perf_counter() - start, found
