"""Read CSV tables in UTF-8, with or without a byte order mark."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hagmil.errors import DataError, UsageError


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
    try:
        reader = csv.DictReader(_open(path, error))
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            raise error(f'"{path}" has no column {", ".join(missing)}; it needs {", ".join(required)}')
        columns = (*required, *optional)
        return [TableRow(reader.line_num, {name: (row.get(name) or "").strip() for name in columns}) for row in reader]
    except csv.Error as problem:
        raise error(f'"{path}" is not a CSV in UTF-8: {problem}') from problem


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
        return io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    except OSError as problem:
        raise error(f'"{path}" cannot be read: {problem.strerror}') from problem
    except UnicodeDecodeError as problem:
        raise error(f'"{path}" is not a CSV in UTF-8: {problem}') from problem
