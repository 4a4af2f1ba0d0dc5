"""Memory: where arrays begin in it, and what the C library does with what was freed.

The two functions about freed memory keep a process from growing by hundreds of megabytes, and do nothing where the C
library is not glibc.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # of malloc.h
_OWN_MEMORY_BYTES = 8 << 20
_LINE_BYTES = 64  # of the processor's cache
_OFF_VECTORS_BYTES = 8  # aligned to no vector of any processor
SPARE_BYTES = _LINE_BYTES + _OFF_VECTORS_BYTES
"""What :func:`off_vectors` leaves out."""


class _Lent:
    """Memory that goes to where it is kept once no array has it as its base."""

    def __init__(self, memory: NDArray[np.uint8], kept: deque[NDArray[np.uint8]]) -> None:
        self._memory, self._kept = memory, kept
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._kept.append(self._memory)


class _Lender:
    """Lends memory, and keeps some of what nobody uses any more for those who ask next.

    Args:
        most: pieces of memory that are kept.
        largest_bytes: a larger piece is not kept.
    """

    def __init__(self, most: int, largest_bytes: float = math.inf) -> None:
        self._largest_bytes = largest_bytes
        self.kept: deque[NDArray[np.uint8]] = deque(maxlen=most)

    def lend(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory of this shape, not initialised."""
        count = math.prod(shape)
        if count > self._largest_bytes:
            return _fresh(count).reshape(shape)
        try:
            memory = self.kept.pop()
        except IndexError:
            memory = None
        if memory is None or not count <= memory.size <= 2 * count:
            memory = _fresh(count)
        return np.asarray(_Lent(memory, self.kept))[:count].reshape(shape)


_batches = _Lender(most=1)
_tiles = _Lender(most=96, largest_bytes=256 << 10)


def written_once(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory for pixels that are not read again soon, off the vectors: see :func:`read_again`.

    What the last such array had is used again once that array and all views of it are gone, unless a stage's model ran
    on the host between (:func:`keep_nothing`): the system clears fresh memory page by page, which costs as much as
    decoding a tenth of the patches that 38 MB of batches are used for.

    Args:
        shape: any.

    Returns:
        uint8 of this shape, not initialised.
    """
    return _batches.lend(shape)


def read_again(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory for pixels that are copied from as soon as they are there: off the vectors.

    libjpeg-turbo writes rows that are aligned to its vectors past the processor's cache, from where they must be
    fetched again: 70 microseconds for a tile of 256 px that takes 220 to decode. Even where nobody fetches them, a tile
    is there 2 to 3 % later than by ordinary writes. What a stage had is used again by the next, up to 24 MB of it: for
    patches across tiles the system would else clear 17 MB anew.

    Args:
        shape: of which a row takes a multiple of 16 bytes, as those of TIFF tiles do.

    Returns:
        uint8 of this shape, not initialised.
    """
    return _tiles.lend(shape)


def keep_nothing() -> None:
    """Let go of the memory that is kept for the next stage's patches: 10 to 60 MB that its model may need more."""
    _batches.kept.clear()
    _tiles.kept.clear()


def off_vectors(memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As much of some memory as begins at no vector of any processor: see :func:`read_again`.

    Args:
        memory: uint8 (n + ``SPARE_BYTES``,), contiguous.

    Returns:
        uint8 (n,), a view.
    """
    begin = -memory.ctypes.data % _LINE_BYTES + _OFF_VECTORS_BYTES
    return memory[begin : begin + len(memory) - SPARE_BYTES]


def _fresh(count: int) -> NDArray[np.uint8]:
    return off_vectors(np.empty(count + SPARE_BYTES, np.uint8))


@functools.cache
def arrange_heap() -> None:
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


def give_back_free_memory() -> None:
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
