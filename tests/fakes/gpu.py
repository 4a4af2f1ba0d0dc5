"""A GPU that is none: memory at addresses that only its own calls may follow, and streams that run late.

Work on a stream is done when somebody waits for the stream, not before. A reader that forgets to wait reads zeros; a
copy beyond the end of an allocation, or from memory that was freed, is an error.
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
    """The device: its memory, its streams, and what was done with it.

    Args:
        capability: its compute capability as cupy writes it, ``89``.
        memory_bytes: how much it has.
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
        """The address of new memory, all zeros."""
        if size > self.free_bytes():
            raise MemoryError(f"out of memory: {size} bytes asked for")
        address, self._next = self._next, self._next + -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        self._blocks[address] = np.zeros(size, np.uint8)
        self.allocations.append(size)
        return address

    def free(self, address: int) -> None:
        """Give memory back."""
        del self._blocks[address]

    def bytes_at(self, address: int, size: int) -> NDArray[np.uint8]:
        """The memory from an address on; an error where it is nobody's."""
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + block.nbytes:
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are nobody's memory")

    def free_bytes(self) -> int:
        """How much memory nobody has."""
        return self.memory_bytes - sum(block.nbytes for block in self._blocks.values())

    def is_pinned(self, array: NDArray[np.uint8]) -> bool:
        """Whether an array is in pinned memory of the host."""
        return any(np.shares_memory(np.frombuffer(memory, np.uint8), array) for memory in self.pinned)

    def stream(self, handle: int) -> FakeStream:
        """The stream of a handle."""
        return self._streams[handle]

    def add_stream(self, stream: FakeStream) -> int:
        """Take a stream in; gives its handle."""
        handle, self._next_handle = self._next_handle, self._next_handle + 8
        self._streams[handle] = stream
        return handle

    def is_idle(self) -> bool:
        """Whether no stream has work left."""
        return all(stream.is_idle() for stream in self._streams.values())

    def finish(self) -> None:
        """Do all work of all streams, the newest one's first, so that what nobody waited for comes too late."""
        for handle in sorted(self._streams, reverse=True):
            self._streams[handle].finish()


class FakeEvent:
    """A point in a stream's work."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.position = stream.given

    def reach(self) -> None:
        """Run the stream up to this point."""
        self.stream.run_until(self.position)

    def synchronize(self) -> None:
        """Wait for this point."""
        self.reach()


class FakeStream:
    """Work in order, done when it is waited for."""

    def __init__(self, gpu: Gpu) -> None:
        self.given = 0
        self._done = 0
        self._work: deque[Callable[[], None]] = deque()
        self.handle = gpu.add_stream(self)

    def give(self, work: Callable[[], None]) -> None:
        """Add work at the end."""
        self._work.append(work)
        self.given += 1

    def is_idle(self) -> bool:
        """Whether all work is done."""
        return self._done == self.given

    def give_or_do(self, work: Callable[[], None]) -> None:
        """Add work at the end, or do it where nothing is before it."""
        if self.is_idle():
            work()
        else:
            self.give(work)

    def run_until(self, position: int) -> None:
        """Do the work up to a point."""
        while self._done < position:
            self._done += 1
            self._work.popleft()()

    def finish(self) -> None:
        """Do all work."""
        self.run_until(self.given)
