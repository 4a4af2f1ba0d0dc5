"""Bags that are read ahead: a thread reads the next slides' features while the present one is trained on.

Order and content are those of reading one after the other. An error of reading comes where the bag would have come.
No more than ``ahead`` bags wait; when the block is left, however that happens, the thread is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from hagmil.trainer.data.cohort import Bag, CohortSlide, read_bag


@contextmanager
def read_ahead(slides: Iterable[CohortSlide], *, ahead: int) -> Iterator[Iterator[Bag]]:
    """Read the bags of slides in their order.

    Args:
        slides: to read.
        ahead: bags that are read or wait besides the one in use; 0: each is read when it is asked for.

    Yields:
        The bags; reading one raises :class:`~hagmil.errors.DataError` where it cannot be read.
    """
    if ahead == 0:
        yield map(read_bag, slides)
        return
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hagmil-prefetch")
    try:
        yield _bags(reader, iter(slides), ahead)
    finally:
        reader.shutdown(cancel_futures=True)


def _bags(reader: ThreadPoolExecutor, slides: Iterator[CohortSlide], ahead: int) -> Iterator[Bag]:
    waiting: deque[Future[Bag]] = deque()
    for slide in slides:
        waiting.append(reader.submit(read_bag, slide))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
