"""Tasks in the background whose results are given in the order in which the tasks were submitted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class OrderedTasks(Generic[T]):
    """Runs tasks in threads. At most ``behind`` results are outstanding when results have been taken.

    Args:
        threads: number of threads.
        behind: number of tasks that may be unfinished.
        name: prefix of the threads' names.
    """

    def __init__(self, *, threads: int, behind: int, name: str) -> None:
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._behind = behind
        self._submitted: deque[Future[T]] = deque()

    def submit(self, task: Callable[[], T]) -> None:
        """Run a task in the background."""
        self._submitted.append(self._workers.submit(task))

    def add(self, result: T) -> None:
        """Take a result into the order that needs no task."""
        known: Future[T] = Future()
        known.set_result(result)
        self._submitted.append(known)

    def take(self) -> Iterator[T]:
        """Give the next results that are known, and wait for others while more tasks than allowed are unfinished.

        Raises:
            BaseException: what a task raised, when its turn comes.
        """
        while self._submitted and (len(self._submitted) > self._behind or self._submitted[0].done()):
            result = self._submitted[0].result()
            self._submitted.popleft()
            yield result

    def take_all(self) -> Iterator[T]:
        """Wait for all tasks and give their results; see :meth:`take`."""
        self._behind = 0
        yield from self.take()
        self._workers.shutdown()

    def stop(self) -> list[T]:
        """End after an error: drop the tasks that have not begun, wait for the others, and ignore their errors.

        Returns:
            The results that were not taken yet.
        """
        self._workers.shutdown(wait=True, cancel_futures=True)
        return [each.result() for each in self._submitted if not each.cancelled() and each.exception() is None]
