"""Readers of hagmil's files end on every mutant with a value or one of hagmil's errors."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from hagmil.errors import DataError
from tests.faults.mutated_files import FILES
from tests.faults.mutations import counts, endings, faults, mutate


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    file = FILES[name](tmp_path)
    found = endings(file.path, file.read, text=file.text)
    assert not faults(found), counts(found)
    assert counts(found)["refused"]


def test_a_seed_gives_the_same_mutant_and_most_seeds_different_ones() -> None:
    data = bytes(range(256)) * 20
    mutants = {mutate(data, seed) for seed in range(100)}
    assert mutate(data, 7) == mutate(data, 7)
    assert len(mutants) > 90
    assert {mutate(b"width: 12", seed, text=True) for seed in range(200)} & {b"width: 1e308"}
    assert mutate(b"", 1) == b""


def test_every_kind_of_ending_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    calls = iter(range(100))

    def read() -> str:
        match next(calls):
            case 0:
                return "value"
            case 1:
                raise DataError("bad")
            case 2:
                raise KeyError("other")
            case 3:
                os.kill(os.getpid(), signal.SIGKILL)
            case 4:
                time.sleep(60)
            case _:
                return str(np.ones(1 << 30, np.uint8).sum())
        return ""

    def read_after(first: int) -> list[str]:
        """Endings when the calls begin at a number; each child starts at the same one."""
        for _ in range(first):
            next(calls)
        found = endings(path, read, count=1, timeout_s=1.0, memory_bytes=1 << 28)
        return [ending.kind for ending in found]

    assert read_after(0) == ["read"]
    assert [read_after(1)[0] for _ in range(5)] == ["refused", "unclassified", "crash", "hang", "memory"]
    assert path.read_bytes() == b"content"
