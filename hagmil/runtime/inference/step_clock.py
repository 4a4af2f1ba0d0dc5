"""Wall-clock seconds of each step, for the timing in a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from hagmil.runtime.sessions.time_limit import check_time


class StepClock:
    """Adds up wall-clock seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()
        self._paused: float | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a block and add its time to a step. Steps do not nest.

        Raises:
            SlideFailed: the time of the slide is over (code ``timeout``).
        """
        check_time()
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def pause(self) -> None:
        """Stop the total until :meth:`resume`, while the slide waits in a queue."""
        self._paused = perf_counter()

    def resume(self) -> None:
        """End a pause; without a pause, do nothing."""
        if self._paused is not None:
            self._start += perf_counter() - self._paused
            self._paused = None

    @property
    def total(self) -> float:
        """Seconds since the clock was created, without pauses that have ended."""
        return perf_counter() - self._start
