"""Freed memory goes back to the system, and runs in threads do not grow the process."""

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
from hagmil.runtime.memory.heap import trim_heap, configure_malloc

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def resident_mb():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
"""

CHURN = """
def churn():
    blocks = [library.malloc(60_000) for _ in range(1600)]  # 96 MB in blocks too small for pages of their own
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    last = blocks.pop()  # what lies on top keeps the heap from shrinking by itself
    for block in blocks:
        library.free(block)
    return last

configure_malloc()
start = resident_mb()
held = [churn()]
kept = resident_mb() - start
trim_heap()
print(kept, resident_mb() - start)
"""


LARGE = """
def large(megabytes):
    block = library.malloc(megabytes << 20)
    ctypes.memset(block, 1, megabytes << 20)
    return block

if {arranged}:
    configure_malloc()
library.free(large(30))  # from here on glibc puts what is smaller into the heap, unless it is told
start = resident_mb()
blocks = [large(20) for _ in range(4)]
last = library.malloc(4 << 20)  # what lies on top keeps the heap from shrinking by itself
for block in blocks:
    library.free(block)
print(resident_mb() - start)
"""


def printed(program: str) -> list[int]:
    """The numbers that a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return [int(word) for word in done.stdout.split()]


def test_what_was_freed_below_a_block_in_use_is_given_back() -> None:
    kept, left = printed(PRELUDE + CHURN)
    assert kept > 80
    assert left < 20


@pytest.mark.parametrize("arranged", [True, False])
def test_large_arrays_have_memory_of_their_own_which_goes_back_at_once(arranged: bool) -> None:
    (left,) = printed(PRELUDE + LARGE.format(arranged=arranged))
    assert (left < 20) == arranged


@pytest.mark.parametrize("shape", [(3, 5), (7, 16, 16, 3), (1, 4)])
def test_memory_begins_off_the_vectors(shape: tuple[int, ...]) -> None:
    for _ in range(20):
        once, again = batch_buffer(shape), tile_buffer(shape)
        assert once.shape == again.shape == shape
        assert once.ctypes.data % 64 == again.ctypes.data % 64 == 8
        assert once.flags.c_contiguous
        assert again.flags.c_contiguous


def test_memory_is_used_again_when_no_view_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagmil.runtime.memory.buffers._batches.kept", deque(maxlen=1))
    first = batch_buffer((50, 64, 64, 3))
    place, view = first.ctypes.data, first[3]
    view[:] = 7
    del first
    second = batch_buffer((50, 64, 64, 3))
    second[:] = 9
    assert (view == 7).all()  # still seen, so it is not lent
    del view
    third = batch_buffer((40, 64, 64, 3))  # a smaller one will do
    assert third.ctypes.data == place
    fourth = batch_buffer((40, 64, 64, 3))
    assert not np.shares_memory(third, fourth)


def test_memory_that_is_much_too_large_or_too_small_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: deque[NDArray[np.uint8]] = deque(maxlen=1)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._batches.kept", kept)
    for before, after in ((50, 20), (20, 50)):
        kept.clear()
        batch_buffer((before, 64, 64, 3))  # gone at once
        (memory,) = kept
        array = batch_buffer((after, 64, 64, 3))
        assert not np.shares_memory(array, memory)


def test_memory_of_tiles_is_used_again_up_to_a_number_and_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: deque[NDArray[np.uint8]] = deque(maxlen=2)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._tiles.kept", kept)
    tiles = [tile_buffer((256, 256, 3)) for _ in range(3)]
    places = {tile.ctypes.data for tile in tiles}
    assert len(places) == 3
    tiles.clear()
    assert len(kept) == 2
    assert tile_buffer((256, 256, 3)).ctypes.data in places
    kept.clear()
    tile_buffer((512, 512, 3))  # gone at once
    assert not kept


def test_nothing_is_kept_when_a_stages_model_may_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: deque[NDArray[np.uint8]] = deque(maxlen=2)
    tiles: deque[NDArray[np.uint8]] = deque(maxlen=2)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._batches.kept", batches)
    monkeypatch.setattr("hagmil.runtime.memory.buffers._tiles.kept", tiles)
    batch_buffer((3, 64, 64, 3))  # gone at once
    tile_buffer((64, 64, 3))
    assert (len(batches), len(tiles)) == (1, 1)
    release_buffers()
    assert (len(batches), len(tiles)) == (0, 0)


def test_no_patches_need_no_memory() -> None:
    assert batch_buffer((0, 64, 64, 3)).shape == (0, 64, 64, 3)
