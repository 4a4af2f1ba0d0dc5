"""Freed memory goes back to the system, and runs in threads do not grow the process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hagmil.runtime.memory import read_again, written_once

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")

CHURN = """
import ctypes, threading
from pathlib import Path
from hagmil.runtime.memory import give_back_free_memory, keep_one_heap

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def resident_mb():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

def churn():
    blocks = [library.malloc(60_000) for _ in range(1600)]  # 96 MB in blocks too small for pages of their own
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    last = blocks.pop()  # what lies on top keeps the heap from shrinking by itself
    for block in blocks:
        library.free(block)
    return last

keep_one_heap()
start = resident_mb()
held = [churn()]
kept = resident_mb() - start
give_back_free_memory()
print(kept, resident_mb() - start)
"""


def test_what_was_freed_below_a_block_in_use_is_given_back() -> None:
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHURN],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    kept, left = (int(word) for word in done.stdout.split())
    assert kept > 80
    assert left < 20


@pytest.mark.parametrize("shape", [(3, 5), (7, 16, 16, 3), (1, 4)])
def test_memory_begins_with_a_line_of_the_cache_or_off_its_vectors(shape: tuple[int, ...]) -> None:
    for _ in range(20):
        once, again = written_once(shape), read_again(shape)
        assert once.shape == again.shape == shape
        assert once.ctypes.data % 64 == 0
        assert again.ctypes.data % 16 == 8
        assert once.flags.c_contiguous
        assert again.flags.c_contiguous
