"""Pooled, unaligned buffers for decoded pixels.

Buffers begin 8 bytes after a cache line, so that no row is aligned to the processor's vectors: see :func:`tile_buffer`.
A buffer returns to its pool when no array refers to it any more.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

_CACHE_LINE_BYTES = 64
_OFFSET_BYTES = 8  # not a multiple of any processor's vector width
SPARE_BYTES = _CACHE_LINE_BYTES + _OFFSET_BYTES
"""Bytes that :func:`unaligned` does not use."""


class _PooledMemory:
    """Memory that returns to its pool when no array has it as its base."""

    def __init__(self, memory: NDArray[np.uint8], free: deque[NDArray[np.uint8]]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)


class _BufferPool:
    """Allocates buffers and reuses those that are no longer referenced.

    Args:
        max_free: largest number of unused buffers that are kept.
        max_bytes: buffers larger than this are not pooled.
    """

    def __init__(self, max_free: int, max_bytes: float = math.inf) -> None:
        self._max_bytes = max_bytes
        self.free: deque[NDArray[np.uint8]] = deque(maxlen=max_free)

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an uninitialised array of this shape."""
        count = math.prod(shape)
        if count > self._max_bytes:
            return _allocate(count).reshape(shape)
        try:
            memory = self.free.pop()
        except IndexError:
            memory = None
        if memory is None or not count <= memory.size <= 2 * count:
            memory = _allocate(count)
        return np.asarray(_PooledMemory(memory, self.free))[:count].reshape(shape)


_batches = _BufferPool(max_free=1)
_tiles = _BufferPool(max_free=96, max_bytes=256 << 10)


def batch_buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocate a buffer for batches of patches.

    The memory of the previous buffer is reused when no view of it exists, unless :func:`release_buffers` was called in
    between. The system clears fresh memory page by page; for the 38 MB of a stage's batches this takes a tenth of the
    time of decoding the patches.

    Args:
        shape: any shape.

    Returns:
        uint8 of this shape, uninitialised and unaligned.
    """
    return _batches.allocate(shape)


def tile_buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocate a buffer for a decoded tile, or for pixels that are copied soon after they are written.

    libjpeg-turbo writes rows that are aligned to its vectors with non-temporal stores, which bypass the processor's
    cache. Fetching a 256 px tile from memory again takes 70 microseconds; decoding it takes 220. Without a fetch,
    decoding with non-temporal stores is still 2 to 3 % slower. Up to 24 MB of unused buffers are kept for the next
    stage: for patches across tiles, the system would otherwise clear 17 MB of fresh memory.

    Args:
        shape: a shape whose rows take a multiple of 16 bytes, as those of TIFF tiles do.

    Returns:
        uint8 of this shape, uninitialised and unaligned.
    """
    return _tiles.allocate(shape)


def release_buffers() -> None:
    """Free all unused buffers: 10 to 60 MB that a stage model may need."""
    _batches.free.clear()
    _tiles.free.clear()


def unaligned(memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view whose first byte is not aligned to any processor's vectors; see :func:`tile_buffer`.

    Args:
        memory: uint8 (n + ``SPARE_BYTES``,), contiguous.

    Returns:
        uint8 (n,), a view of ``memory``.
    """
    begin = -memory.ctypes.data % _CACHE_LINE_BYTES + _OFFSET_BYTES
    return memory[begin : begin + len(memory) - SPARE_BYTES]


def _allocate(count: int) -> NDArray[np.uint8]:
    return unaligned(np.empty(count + SPARE_BYTES, np.uint8))
