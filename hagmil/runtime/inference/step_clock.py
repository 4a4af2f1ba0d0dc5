"""Seconds by step, so that a result can say where the time went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class StepClock:
    """Adds up wall-clock seconds under the names of steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the block's time under a name; steps do not nest."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return perf_counter() - self._start
