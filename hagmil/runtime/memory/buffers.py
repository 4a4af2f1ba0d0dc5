"""Memory: where arrays begin in it, and what the C library does with what was freed.

The two functions about freed memory keep a process from growing by hundreds of megabytes, and do nothing where the C
library is not glibc.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

_LINE_BYTES = 64  # of the processor's cache
_OFF_VECTORS_BYTES = 8  # aligned to no vector of any processor
SPARE_BYTES = _LINE_BYTES + _OFF_VECTORS_BYTES
"""What :func:`unaligned` leaves out."""


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


def batch_buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory for pixels that are not read again soon, off the vectors: see :func:`tile_buffer`.

    What the last such array had is used again once that array and all views of it are gone, unless a stage's model ran
    on the host between (:func:`release_buffers`): the system clears fresh memory page by page, which costs as much as
    decoding a tenth of the patches that 38 MB of batches are used for.

    Args:
        shape: any.

    Returns:
        uint8 of this shape, not initialised.
    """
    return _batches.lend(shape)


def tile_buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
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


def release_buffers() -> None:
    """Let go of the memory that is kept for the next stage's patches: 10 to 60 MB that its model may need more."""
    _batches.kept.clear()
    _tiles.kept.clear()


def unaligned(memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As much of some memory as begins at no vector of any processor: see :func:`tile_buffer`.

    Args:
        memory: uint8 (n + ``SPARE_BYTES``,), contiguous.

    Returns:
        uint8 (n,), a view.
    """
    begin = -memory.ctypes.data % _LINE_BYTES + _OFF_VECTORS_BYTES
    return memory[begin : begin + len(memory) - SPARE_BYTES]


def _fresh(count: int) -> NDArray[np.uint8]:
    return unaligned(np.empty(count + SPARE_BYTES, np.uint8))
