"""Labels and split of a cohort in any supported form, with their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hagmil._files import sha256_of
from hagmil.errors import DataError
from hagmil.trainer.data.labels import PARTS, SlideLabel, Split, read_labels
from hagmil.trainer.data.published_splits import read_clam_split, read_hmil_split


@dataclass(frozen=True, slots=True)
class Tables:
    """Labels and split of a cohort.

    Args:
        labels: slide name to label.
        split: the slides of each part.
        labels_sha256: digest of the file with the labels.
        split_sha256: digest of the file or files with the split.
    """

    labels: Mapping[str, SlideLabel]
    split: Split
    labels_sha256: str
    split_sha256: str


def read_tables(
    labels_path: Path | None, split_path: Path, *, fold: int | None = None, classes: Sequence[str] | None = None
) -> Tables:
    """Read labels and split.

    Args:
        labels_path: labels.csv; None if the labels are in HMIL's pickled lists.
        split_path: a split of CLAM in either form; with a fold, a folder of HMIL's pickled lists.
        fold: number of the fold, from 0; None for a CSV.
        classes: names in the order of the logits; a pickled list may contain their indices instead.

    Raises:
        DataError: a file cannot be read, or there are no labels.
    """
    if fold is None:
        if labels_path is None:
            raise DataError("labels are missing; only HMIL's pickled lists contain both labels and split")
        split = read_clam_split(split_path)
        return Tables(read_labels(labels_path), split, sha256_of(labels_path), sha256_of(split_path))
    split, found = read_hmil_split(split_path, fold)
    split_sha256 = _digest([split_path / f"{part}_splits_{fold}.pkl" for part in PARTS])
    if labels_path is not None:
        return Tables(read_labels(labels_path), split, sha256_of(labels_path), split_sha256)
    labels = {name: SlideLabel(name, name, _named(label, classes)) for name, label in found.items()}
    return Tables(labels, split, split_sha256, split_sha256)


def _named(label: str, classes: Sequence[str] | None) -> str:
    """The class name of a label; a label that is not a class name may be the index of a class."""
    numbered = classes is not None and label not in classes and label.isdecimal() and int(label) < len(classes)
    return classes[int(label)] if classes is not None and numbered else label


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()
