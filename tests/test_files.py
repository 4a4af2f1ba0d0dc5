"""Atomic file writing and digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hagmil._files import atomic_path, sha256_of, write_text


def test_the_file_appears_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "result.json"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.suffix == target.suffix
    assert target.read_text() == "half"


def test_an_error_keeps_the_old_file_and_removes_the_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_sha256_of_hashes_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    data = bytes(range(256)) * 10_000
    path.write_bytes(data)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
