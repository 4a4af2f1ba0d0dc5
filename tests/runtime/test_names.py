"""Safe folder names, and names that can be stored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hagmil.runtime.names import LONGEST_BYTES, path_digest, safe_name, storable


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("TCGA-01 (2) [a].b", "TCGA-01 (2) [a].b"),
        ("Gewebe äöü 切片", "Gewebe äöü 切片"),
        ("a\nb\0c", "a_b_c"),
        ("a/b", "a_b"),
        ("../../b", "__.._b"),
        ("", "_"),
        (".", "_"),
        ("..", "_"),
        (".hidden", "_hidden"),
        ("-rf", "_rf"),
        ("=1+1", "_1+1"),
        ("a. ", "a"),
        ("CON", "_CON"),
        ("com1.x", "_com1.x"),
        ("console", "console"),
        ("results.csv", "_results.csv"),
        (os.fsdecode(b"a\xff"), "a_"),
        ("ä" * 200, "ä" * (LONGEST_BYTES // 2)),
    ],
)
def test_names_are_made_safe(text: str, safe: str) -> None:
    assert safe_name(text) == safe
    assert safe_name(safe) == safe


def test_bytes_that_are_not_utf_8_are_escaped() -> None:
    assert storable(os.fsdecode(b"a\xffb")) == r"a\xffb"
    assert storable("a\ud800") == r"a\ud800"
    assert storable("ä\n") == "ä\n"


def test_digests_tell_paths_apart() -> None:
    names = ("a", "b", os.fsdecode(b"a\xff"), os.fsdecode(b"a\xfe"))
    assert len({path_digest(Path(name)) for name in names}) == len(names)
