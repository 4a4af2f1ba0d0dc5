"""Tables of labels and splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hagmil._tables import read_table
from hagmil.errors import DataError

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_EMPTY_CELLS = {"", "nan"}


@dataclass(frozen=True, slots=True)
class SlideLabel:
    """One row of labels.csv.

    Args:
        slide_id: unique name of the slide.
        case_id: the patient; all slides of a patient should be in the same part of a split.
        label: name of the class.
    """

    slide_id: str
    case_id: str
    label: str


@dataclass(frozen=True, slots=True)
class Split:
    """Names of the slides of each part, in the order of the file."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def part(self, name: Part) -> tuple[str, ...]:
        """The slides of one part."""
        parts: dict[Part, tuple[str, ...]] = {"train": self.train, "val": self.val, "test": self.test}
        return parts[name]


def read_labels(path: Path) -> dict[str, SlideLabel]:
    """Read labels.csv.

    Args:
        path: CSV with the columns slide_id, case_id, label; other columns are ignored.

    Returns:
        Slide name to label.

    Raises:
        DataError: the file cannot be read, lacks a column or a value, or contains a slide twice.
    """
    labels: dict[str, SlideLabel] = {}
    for row in read_table(path, ("slide_id", "case_id", "label")):
        entry = SlideLabel(row["slide_id"], row["case_id"], row["label"])
        if not entry.slide_id or not entry.case_id or not entry.label:
            raise DataError(f'labels "{path}", line {row.line}: slide_id, case_id and label must not be empty')
        if entry.slide_id in labels:
            raise DataError(f'labels "{path}", line {row.line}: slide "{entry.slide_id}" occurs twice')
        labels[entry.slide_id] = entry
    if not labels:
        raise DataError(f'labels "{path}" contain no slides')
    return labels


def read_split(path: Path) -> Split:
    """Read a split of CLAM with the columns train, val and test, of any lengths, after an unnamed index.

    Args:
        path: the CSV; cells after the end of a column are empty or ``nan``.

    Returns:
        The slides of each part.

    Raises:
        DataError: the file cannot be read, lacks a column, or contains a slide twice.
    """
    columns: dict[Part, list[str]] = {part: [] for part in PARTS}
    seen: dict[str, Part] = {}
    for row in read_table(path, PARTS):
        for part in PARTS:
            slide_id = row[part]
            if slide_id.lower() in _EMPTY_CELLS:
                continue
            if slide_id in seen:
                raise DataError(
                    f'split "{path}", line {row.line}: slide "{slide_id}" is in {part} and already in '
                    f"{seen[slide_id]}; each slide may occur once"
                )
            seen[slide_id] = part
            columns[part].append(slide_id)
    return Split(*(tuple(columns[part]) for part in PARTS))


def shared_cases(split: Split, labels: Mapping[str, SlideLabel]) -> list[str]:
    """Patients with slides in more than one part of a split, sorted."""
    parts_of: dict[str, set[Part]] = {}
    for part in PARTS:
        for slide_id in split.part(part):
            parts_of.setdefault(labels[slide_id].case_id, set()).add(part)
    return sorted(case_id for case_id, parts in parts_of.items() if len(parts) > 1)
