"""Buffers are unaligned and reused, and freed memory is returned to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.runtime.memory.buffers import batch_buffer, release_buffers, tile_buffer
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")

PRELUDE = """
import ctypes, threading
from pathlib import Path
from hagmil.runtime.memory.heap import configure_malloc, trim_heap

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def resident_mb():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
"""

CHURN = """
def churn():
    blocks = [library.malloc(60_000) for _ in range(1600)]  # 96 MB in blocks too small for mappings of their own
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    last = blocks.pop()  # the topmost block keeps the heap from shrinking by itself
    for block in blocks:
        library.free(block)
    return last

configure_malloc()
start = resident_mb()
held = [churn()]
before = resident_mb() - start
trim_heap()
print(before, resident_mb() - start)
"""


LARGE = """
def large(megabytes):
    block = library.malloc(megabytes << 20)
    ctypes.memset(block, 1, megabytes << 20)
    return block

if {configured}:
    configure_malloc()
library.free(large(30))  # from here on glibc allocates smaller blocks on the heap, unless configured otherwise
start = resident_mb()
blocks = [large(20) for _ in range(4)]
last = library.malloc(4 << 20)  # the topmost block keeps the heap from shrinking by itself
for block in blocks:
    library.free(block)
print(resident_mb() - start)
"""


def printed(program: str) -> list[int]:
    """Run a program in a new process and return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return [int(word) for word in done.stdout.split()]


def test_trim_heap_returns_memory_that_was_freed_below_a_block_in_use() -> None:
    before, after = printed(PRELUDE + CHURN)
    assert before > 80
    assert after < 20


@pytest.mark.parametrize("configured", [True, False])
def test_configured_malloc_returns_large_arrays_at_once(configured: bool) -> None:
    (left,) = printed(PRELUDE + LARGE.format(configured=configured))
    assert (left < 20) == configured


@pytest.mark.parametrize("shape", [(3, 5), (7, 16, 16, 3), (1, 4)])
def test_buffers_are_unaligned_and_contiguous(shape: tuple[int, ...]) -> None:
    for _ in range(20):
        batch, tile = batch_buffer(shape), tile_buffer(shape)
        assert batch.shape == tile.shape == shape
        assert batch.ctypes.data % 64 == tile.ctypes.data % 64 == 8
        assert batch.flags.c_contiguous
        assert tile.flags.c_contiguous


def test_memory_is_reused_when_no_view_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagmil.runtime.memory.buffers._batches.free", deque(maxlen=1))
    first = batch_buffer((50, 64, 64, 3))
    address, view = first.ctypes.data, first[3]
    view[:] = 7
    del first
    second = batch_buffer((50, 64, 64, 3))
    second[:] = 9
    assert (view == 7).all()  # still in use, so it is not reused
    del view
    third = batch_buffer((40, 64, 64, 3))  # fits into the memory of the first
    assert third.ctypes.data == address
    fourth = batch_buffer((40, 64, 64, 3))
    assert not np.shares_memory(third, fourth)


def test_memory_that_is_too_small_or_much_too_large_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    free: deque[NDArray[np.uint8]] = deque(maxlen=1)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._batches.free", free)
    for before, after in ((50, 20), (20, 50)):
        free.clear()
        batch_buffer((before, 64, 64, 3))  # freed at once
        (memory,) = free
        array = batch_buffer((after, 64, 64, 3))
        assert not np.shares_memory(array, memory)


def test_tile_buffers_are_reused_up_to_a_number_and_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    free: deque[NDArray[np.uint8]] = deque(maxlen=2)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._tiles.free", free)
    tiles = [tile_buffer((256, 256, 3)) for _ in range(3)]
    addresses = {tile.ctypes.data for tile in tiles}
    assert len(addresses) == 3
    tiles.clear()
    assert len(free) == 2
    assert tile_buffer((256, 256, 3)).ctypes.data in addresses
    free.clear()
    tile_buffer((512, 512, 3))  # freed at once
    assert not free


def test_release_buffers_frees_all_unused_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: deque[NDArray[np.uint8]] = deque(maxlen=2)
    tiles: deque[NDArray[np.uint8]] = deque(maxlen=2)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._batches.free", batches)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._tiles.free", tiles)
    batch_buffer((3, 64, 64, 3))  # freed at once
    tile_buffer((64, 64, 3))
    assert (len(batches), len(tiles)) == (1, 1)
    release_buffers()
    assert (len(batches), len(tiles)) == (0, 0)


def test_an_empty_batch_has_an_empty_buffer() -> None:
    assert batch_buffer((0, 64, 64, 3)).shape == (0, 64, 64, 3)
