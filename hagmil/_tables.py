"""Read CSV tables in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with one."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hagmil.errors import DataError, UsageError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and the encodings that they stand for; without a mark, only UTF-8 is certain."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table.

    Args:
        line: number of its last line in the file, from 1.
        cells: column name to cell without surrounding spaces; a missing cell is empty.
    """

    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def read_table(
    path: Path, required: Sequence[str], *, optional: Sequence[str] = (), error: type[UsageError] = DataError
) -> list[TableRow]:
    """Read a CSV whose first row names the columns.

    Args:
        path: the file.
        required: columns that the file must have.
        optional: columns that the file may have; their cells are empty if it does not. All other columns are ignored.
        error: class of the error to raise.

    Raises:
        UsageError: of the given class; the file cannot be read, is not a CSV in UTF-8, or lacks a required column.
    """
    reader = csv.DictReader(_open(path, error))
    try:
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            raise error(f'"{path}" has no column {", ".join(missing)}; it needs {", ".join(required)}')
        columns = (*required, *optional)
        return [TableRow(reader.line_num, {name: (row.get(name) or "").strip() for name in columns}) for row in reader]
    except csv.Error as problem:
        raise error(f'"{path}" is not a CSV in UTF-8: {problem}, after line {reader.line_num}') from problem


def read_cells(path: Path) -> list[list[str]]:
    """Read all rows of a CSV, including the first; rows may differ in length.

    Raises:
        DataError: the file cannot be read or is not a CSV in UTF-8.
    """
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(_open(path, DataError))]
    except csv.Error as problem:
        raise DataError(f'"{path}" is not a CSV in UTF-8: {problem}') from problem


def _open(path: Path, error: type[UsageError]) -> io.StringIO:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        raise error(f'"{path}" cannot be read: {getattr(problem, "strerror", None) or problem}') from problem
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise error(
            f'"{path}" is not a CSV in UTF-8: line {line} has bytes of another encoding; save the table as UTF-8'
        ) from problem
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise error(f'"{path}" is not a CSV in UTF-8: line {line} contains a NUL character; save the table as UTF-8')
    return io.StringIO(text, newline="")
