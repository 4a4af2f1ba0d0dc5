"""Settings of glibc's malloc that keep a process from growing. They have no effect with other C libraries."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1  # from malloc.h
_MMAP_THRESHOLD_BYTES = 8 << 20
_TRIM_THRESHOLD_BYTES = 32 << 20


@functools.cache
def configure_malloc() -> None:
    """Use one heap for all threads, separate mappings for arrays of 8 MB and more, and keep 32 MB of free memory.

    One heap: by default, glibc gives each thread its own heap (arena), and memory freed by one run of a graph is not
    available to the next one in another thread. Above the loaded model, eleven batches of 16 patches through
    resnet50-trunc took 610 to 770 MB with the default, and take 180 MB with one heap, in the same time.

    Mappings: by default, once an array of up to 32 MB has been freed, glibc allocates arrays of this size on the heap,
    which leaves gaps between the tensors of a stage model. Arrays of 8 MB and more now always have a mapping of their
    own, which is returned to the system when it is freed. For a bag of 2,341 patches, the full-size model took 335 to
    349 MB with the default; it takes 271 to 294 MB, in 1.0 to 1.3 times the time, since a run clears 217,000 pages
    instead of 35,000. A threshold of 4 MB gives 202 MB and 1.3 times the time.

    Top of the heap: once the threshold for mappings is set, glibc returns memory to the system whenever more than
    128 KB are free at the top of the heap, and the next array clears these pages again. Up to 32 MB now remain until
    :func:`trim_heap` returns them. Colouring a heatmap took 31 ms before and takes 11 ms.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def trim_heap() -> None:
    """Return the free memory of this process's heap to the system. Takes milliseconds.

    The tensors of a backbone and of a stage model differ in size, so the heap would otherwise keep the memory that
    either has freed until the process ends. The same applies to the file of a model and to a large slide's overview.
    """
    malloc_trim = getattr(_c_library(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def _c_library() -> Any:
    return ctypes.CDLL(None)
