"""Splits in the layouts of the published code, read without executing anything in the files.

- CLAM: ``splits_i.csv`` with one column of slides per part, and ``splits_i_bool.csv`` with one row per slide. Some
  published tables have a running number before the slide, and no column name for the slide.
- HMIL: ``train_splits_i.pkl``, ``val_splits_i.pkl`` and ``test_splits_i.pkl``, each a pickled list of
  [slide, label, path of its features].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagmil._tables import read_cells
from hagmil.errors import DataError
from hagmil.trainer.data.labels import PARTS, Part, Split, read_split
from hagmil.trainer.published.pickles import PickleBroken, PickleRefused, read_pickled_list
from hagmil.trainer.published.torch_file import refusal


@dataclass(frozen=True, slots=True)
class LabelledSlide:
    """An entry of a pickled list of HMIL.

    Args:
        slide_id: name of the slide.
        label: its fine label.
        path: path of its features on the machine where the list was written.
    """

    slide_id: str
    label: str
    path: str


def read_clam_split(path: Path) -> Split:
    """Read a split of CLAM in either form.

    Args:
        path: ``splits_i.csv`` or ``splits_i_bool.csv``, distinguished by their cells.

    Returns:
        The slides of each part, in the order of the file.

    Raises:
        DataError: the file cannot be read or lacks a column, or a slide is in no part or in several.
    """
    rows = read_cells(path)
    header = rows[0] if rows else []
    missing = [part for part in PARTS if part not in header]
    if missing:
        raise DataError(f'"{path}" has no column {", ".join(missing)}; it needs {", ".join(PARTS)}')
    body = [row for row in rows[1:] if any(row)]
    places = {
        part: header.index(part) - len(header) for part in PARTS
    }  # from the end, because some rows have one more cell
    cells = {row[places[part]].lower() for row in body for part in PARTS if len(row) >= len(header)}
    return _boolean_split(path, body, places) if cells and cells <= {"true", "false"} else read_split(path)


def read_hmil_list(path: Path) -> tuple[LabelledSlide, ...]:
    """Read a pickled list of HMIL.

    Raises:
        DataError: the file cannot be read, would execute something, or is not a list of [slide, label, path].
    """
    try:
        entries = read_pickled_list(path)
    except OSError as error:
        raise DataError(f'"{path}" cannot be read: {error.strerror}') from error
    except PickleRefused as error:
        raise DataError(refusal(path, error).message, code="unsafe_pickle") from error
    except PickleBroken as error:
        raise DataError(f'"{path}" is not a split list of HMIL: {error}') from error
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise DataError(f'"{path}" is not a split list of HMIL: it must contain [slide, label, path] for each slide')
    return tuple(LabelledSlide(*(str(value) for value in entry)) for entry in entries)


def read_hmil_split(folder: Path, fold: int) -> tuple[Split, dict[str, str]]:
    """Read the three pickled lists of one fold of HMIL.

    Args:
        folder: folder of ``train_splits_<fold>.pkl``, ``val_splits_<fold>.pkl`` and ``test_splits_<fold>.pkl``.
        fold: number of the fold, from 0.

    Returns:
        The slides of each part, and the label of each slide.

    Raises:
        DataError: a list cannot be read, or a slide is in two parts or has two labels.
    """
    parts: dict[Part, tuple[str, ...]] = {}
    labels: dict[str, str] = {}
    for part in PARTS:
        path = folder / f"{part}_splits_{fold}.pkl"
        slides: dict[str, None] = {}
        for entry in read_hmil_list(path):
            if labels.setdefault(entry.slide_id, entry.label) != entry.label:
                raise DataError(f'"{path}": slide "{entry.slide_id}" has two labels in fold {fold}')
            if any(entry.slide_id in other for other in parts.values()):
                raise DataError(f'"{path}": slide "{entry.slide_id}" is in two parts of fold {fold}')
            slides[entry.slide_id] = None
        parts[part] = tuple(slides)
    return Split(**parts), labels


def _boolean_split(path: Path, body: Sequence[Sequence[str]], places: dict[Part, int]) -> Split:
    """Read the form with one row per slide: perhaps a running number, then its name and three cells."""
    parts: dict[Part, list[str]] = {part: [] for part in PARTS}
    seen: set[str] = set()
    for row in body:
        if len(row) <= -min(places.values()):
            raise DataError(f'split "{path}": a row has no slide')
        *_, slide_id = row[: min(places.values())]
        chosen = [part for part in PARTS if row[places[part]].lower() == "true"]
        if len(chosen) != 1 or slide_id in seen:
            raise DataError(f'split "{path}": slide "{slide_id}" must be in exactly one part, once')
        seen.add(slide_id)
        parts[chosen[0]].append(slide_id)
    return Split(**{part: tuple(slides) for part, slides in parts.items()})


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(v, str | int) for v in entry)
