"""A time limit for the work on one slide.

The work asks between its steps and batches whether time is up. A run of ONNX Runtime is terminated, which takes effect
between two nodes of its graph, also in the body of a loop. A single node, and runs of other libraries, end by
themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hagmil.errors import SlideFailed


class _Limit:
    """Seconds, whether they are over, and what to call then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_over = False
        self._lock = threading.Lock()
        self._stops: list[Callable[[], None]] = []

    def end(self) -> None:
        with self._lock:
            self.is_over = True
            for stop in self._stops:
                stop()

    def add(self, stop: Callable[[], None]) -> None:
        with self._lock:
            self._stops.append(stop)
            if self.is_over:
                stop()

    def remove(self, stop: Callable[[], None]) -> None:
        with self._lock:
            self._stops.remove(stop)

    def error(self) -> SlideFailed:
        return SlideFailed(
            f"the slide took longer than {self.seconds:g} s; pass a larger --timeout-s, or check the slide and model",
            code="timeout",
        )


_limit: ContextVar[_Limit | None] = ContextVar("hagmil_time_limit", default=None)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limit the time of a block in this thread.

    Args:
        seconds: the limit; None for none.
    """
    if seconds is None:
        yield
        return
    limit = _Limit(seconds)
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    token = _limit.set(limit)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _limit.reset(token)


def check_time() -> None:
    """Check that the time is not over.

    Raises:
        SlideFailed: it is (code ``timeout``).
    """
    limit = _limit.get()
    if limit is not None and limit.is_over:
        raise limit.error()


@contextmanager
def ending_in_time(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` when the time is over while the block runs.

    Args:
        stop: lets the block raise an error soon; called from another thread.

    Raises:
        SlideFailed: an error of the block, after the time was over (code ``timeout``).
    """
    limit = _limit.get()
    if limit is None:
        yield
        return
    limit.add(stop)
    try:
        yield
    except Exception as error:
        if limit.is_over:
            raise limit.error() from error
        raise
    finally:
        limit.remove(stop)
