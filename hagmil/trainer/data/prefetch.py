"""Prefetching of bags: a thread reads the features of the next slides while the current one is used for training.

Order and content are the same as without a thread. An error in reading a bag is raised when this bag is due. At most
``ahead`` bags are held in addition to the current one. The thread ends with the block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from hagmil.trainer.data.cohort import Bag, CohortSlide, read_bag


@contextmanager
def read_ahead(slides: Iterable[CohortSlide], *, ahead: int) -> Iterator[Iterator[Bag]]:
    """Read the bags of slides in order.

    Args:
        slides: the slides.
        ahead: number of bags to hold in addition to the current one; 0: read each bag when it is due, without a thread.

    Yields:
        An iterator over the bags. It raises :class:`~hagmil.errors.DataError` for a bag that cannot be read.
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
