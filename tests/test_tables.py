"""CSV tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from hagmil._tables import read_cells, read_table
from hagmil.errors import DataError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def test_rows_have_line_numbers_and_stripped_cells(path: Path) -> None:
    path.write_bytes("a,b,other\r\n 1 ,x,9\r\n2\r\n".encode("utf-8-sig"))
    rows = read_table(path, ("b",), optional=("a", "c"))
    assert [(row.line, row.cells) for row in rows] == [
        (2, {"b": "x", "a": "1", "c": ""}),
        (3, {"b": "", "a": "2", "c": ""}),
    ]
    assert rows[0]["a"] == "1"


def test_read_cells_accepts_rows_of_different_lengths(path: Path) -> None:
    path.write_text(",train\n0, a ,True\n")
    assert read_cells(path) == [["", "train"], ["0", "a", "True"]]


@pytest.mark.parametrize("error", [DataError, UsageError])
def test_a_missing_column_raises_the_given_error(path: Path, error: type[UsageError]) -> None:
    path.write_text("a,b\n")
    with pytest.raises(error, match="has no column c; it needs a, c") as caught:
        read_table(path, ("a", "c"), error=error)
    assert type(caught.value) is error


@pytest.mark.parametrize("content", [None, b"a,b\n\xff\xfe,1\n", b'a,b\n"1' + b"x" * 200_000])
def test_an_unreadable_table_is_rejected(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    message = "cannot be read" if content is None else "is not a CSV in UTF-8"
    with pytest.raises(DataError, match=message):
        read_table(path, ("a",))
    with pytest.raises(DataError, match=message):
        read_cells(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_gives_the_encoding(path: Path, encoding: str) -> None:
    path.write_bytes("a,b\r\nä,切\r\n".encode(encoding))
    assert read_table(path, ("a", "b"))[0].cells == {"a": "ä", "b": "切"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,b\n1,2\nä,2\n".encode("latin-1"), "line 3 has bytes of another encoding; save the table as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1 contains a NUL character; save the table as UTF-8"),
        (b"a,b\n1,\x002\n", "line 2 contains a NUL character"),
        (b"a,b\n1," + b"x" * 200_000, "field larger than field limit .*, after line 1"),
    ],
)
def test_the_line_of_an_unreadable_character_is_named(path: Path, content: bytes, problem: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"is not a CSV in UTF-8: {problem}"):
        read_table(path, ("a",))
