"""A fake GPU with device memory, which only its own calls can access, and asynchronous streams.

Work on a stream runs only when a caller waits for the stream. Code that does not wait reads zeros. A copy beyond the
end of an allocation, or from freed memory, is an error.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_FIRST_ADDRESS = 0x7F00_0000_0000
_ALIGNMENT = 512


@dataclass
class Gpu:
    """The device: its memory, its streams, and a record of copies and allocations.

    Args:
        capability: compute capability in cupy's notation, ``89``.
        memory_bytes: size of its memory.
    """

    capability: str = "89"
    memory_bytes: int = 1 << 34
    allocations: list[int] = field(default_factory=list)
    copies_to_host: int = 0
    copies_to_device: int = 0
    pinned: list[bytearray] = field(default_factory=list)
    _blocks: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    _next: int = _FIRST_ADDRESS
    _next_handle: int = 0x1000
    _streams: weakref.WeakValueDictionary[int, FakeStream] = field(default_factory=weakref.WeakValueDictionary)

    def allocate(self, size: int) -> int:
        """Allocate memory, filled with zeros, and return its address."""
        if size > self.free_bytes():
            raise MemoryError(f"out of memory: {size} bytes requested")
        address, self._next = self._next, self._next + -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        self._blocks[address] = np.zeros(size, np.uint8)
        self.allocations.append(size)
        return address

    def free(self, address: int) -> None:
        """Free memory."""
        del self._blocks[address]

    def bytes_at(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return the memory at an address; it is an error if it is not allocated."""
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + block.nbytes:
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def free_bytes(self) -> int:
        """Return the number of free bytes."""
        return self.memory_bytes - sum(block.nbytes for block in self._blocks.values())

    def is_pinned(self, array: NDArray[np.uint8]) -> bool:
        """Return whether an array is in pinned memory of the host."""
        return any(np.shares_memory(np.frombuffer(memory, np.uint8), array) for memory in self.pinned)

    def stream(self, handle: int) -> FakeStream:
        """Return the stream with a handle."""
        return self._streams[handle]

    def add_stream(self, stream: FakeStream) -> int:
        """Register a stream and return its handle."""
        handle, self._next_handle = self._next_handle, self._next_handle + 8
        self._streams[handle] = stream
        return handle

    def is_idle(self) -> bool:
        """Return whether no stream has pending work."""
        return all(stream.is_idle() for stream in self._streams.values())

    def finish(self) -> None:
        """Run all work of all streams, newest stream first, so that missing synchronisation shows."""
        for handle in sorted(self._streams, reverse=True):
            self._streams[handle].finish()


class FakeEvent:
    """A point in the work of a stream."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.position = stream.enqueued

    def reach(self) -> None:
        """Run the stream up to this point."""
        self.stream.run_until(self.position)

    def synchronize(self) -> None:
        """Wait for this point."""
        self.reach()


class FakeStream:
    """A queue of work that runs when a caller waits for it."""

    def __init__(self, gpu: Gpu) -> None:
        self.enqueued = 0
        self._done = 0
        self._work: deque[Callable[[], None]] = deque()
        self.handle = gpu.add_stream(self)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Append work."""
        self._work.append(work)
        self.enqueued += 1

    def is_idle(self) -> bool:
        """Return whether all work is done."""
        return self._done == self.enqueued

    def enqueue_or_run(self, work: Callable[[], None]) -> None:
        """Append work, or run it now if no work is pending."""
        if self.is_idle():
            work()
        else:
            self.enqueue(work)

    def run_until(self, position: int) -> None:
        """Run the work up to a point."""
        while self._done < position:
            self._done += 1
            self._work.popleft()()

    def finish(self) -> None:
        """Run all work."""
        self.run_until(self.enqueued)
