"""Settings of glibc's malloc; they do nothing with another C library."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # of malloc.h


_OWN_MEMORY_BYTES = 8 << 20


@functools.cache
def configure_malloc() -> None:
    """Let all threads of this process share one heap, and large arrays have memory of their own.

    glibc gives threads heaps of their own, and a run of a graph is left to a thread; what one run freed the next may
    not find. Eleven batches of 16 patches through resnet50-trunc took up to 610 to 770 MB above the loaded model with
    glibc's default, and take 180 MB with one heap, in the same time.

    Once an array of up to 32 MB is freed, glibc also puts others of its size into the heap, where gaps are left between
    those of a stage's model. With a bag of 2,341 patches the full-size one took 335 to 349 MB. When 8 MB and more
    always have memory of their own, which goes back at once, it takes 271 to 294, in 1.0 to 1.3 times the time: 217,000
    pages are cleared anew in a run, where it were 35,000. From 4 MB on it would be 202 MB and 1.3 times.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _OWN_MEMORY_BYTES)


def trim_heap() -> None:
    """Let the system have what is free in this process's heap.

    A backbone's and a stage model's tensors differ in size, so the heap comes to hold what either freed, until the
    process ends; so do a model's file when it is loaded and a large slide's overview. Takes milliseconds.
    """
    malloc_trim = getattr(_c_library(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@functools.cache
def _c_library() -> Any:
    return ctypes.CDLL(None)
