"""Splits of a cohort into training, validation and test, stratified by class and grouped by patient.

1. The slides of held-out sites are the test part of every split. A patient must not have slides at a held-out site and
   at another.
2. The other slides are divided into subsets by StratifiedGroupKFold of scikit-learn: all subsets have about the same
   share of each class, and all slides of a patient are in one subset. The result depends on the seed, but not on the
   order of the slides in the file.
3. k folds: fold i has subset i for test and subset i + 1 for validation; with held-out sites, subset i for validation.
   All other subsets are for training.
4. Random splits: the number of subsets follows from the shares (tenths need 10); each part gets its share of the
   subsets.
5. It is an error if a class is missing in training. If it is missing in validation or test, a warning is logged,
   because no metric of this class can be computed there.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from hagmil._files import write_text
from hagmil._tables import read_table
from hagmil.errors import DataError, UsageError
from hagmil.trainer.data.labels import PARTS, Part, SlideLabel, Split

_log = logging.getLogger(__name__)

MAX_SUBSETS = 20
"""Largest number of subsets: a share can be 0.05, but not 0.01."""
_SHARE_TOLERANCE = 0.005


def make_folds(
    labels: Mapping[str, SlideLabel],
    folds: int,
    *,
    seed: int = 0,
    sites: Mapping[str, str] | None = None,
    held_out_sites: Collection[str] = (),
) -> tuple[Split, ...]:
    """Make k folds for cross-validation.

    Args:
        labels: slide name to its label and patient.
        folds: k; at least 3, or 2 with held-out sites.
        seed: seed of the random numbers.
        sites: slide name to its site; required for ``held_out_sites``.
        held_out_sites: sites for test; then all folds have the same test part.

    Returns:
        One split per fold. Without held-out sites, each slide is in the test part of one fold.

    Raises:
        UsageError: too few folds, or held-out sites without sites.
        DataError: fewer patients than folds, an unknown site, a patient at several sites, or a class that is missing
            in the training part of a fold.
    """
    least = 2 if held_out_sites else 3
    if folds < least:
        raise UsageError(f"{folds} folds; at least {least} are needed for training, validation and test")
    rest, test = _hold_out(labels, sites, held_out_sites)  # step 1
    _need_cases(rest, folds, f"cannot be divided into {folds} folds; choose fewer folds")
    subsets = _subsets(rest, folds, seed)  # step 2
    splits = []
    for fold in range(folds):  # step 3
        val = fold if held_out_sites else (fold + 1) % folds
        tested = test if held_out_sites else subsets[fold]
        left_out = {fold, val}
        trained = [slide for place, subset in enumerate(subsets) if place not in left_out for slide in subset]
        splits.append(Split(tuple(sorted(trained)), subsets[val], tested))
    return _checked(splits, labels)


def make_splits(
    labels: Mapping[str, SlideLabel],
    count: int = 1,
    *,
    val_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    sites: Mapping[str, str] | None = None,
    held_out_sites: Collection[str] = (),
) -> tuple[Split, ...]:
    """Make independent random splits.

    Args:
        labels: slide name to its label and patient.
        count: number of splits.
        val_share: share of the slides for validation.
        test_share: share of the slides for test, 0 for none; ignored if sites are held out.
        seed: seed of the random numbers.
        sites: slide name to its site; required for ``held_out_sites``.
        held_out_sites: sites for test; the shares then refer to the other slides.

    Returns:
        The splits. The shares are approximate, because patients are not divided.

    Raises:
        UsageError: a count below 1, shares that leave nothing for training or are neither multiples of 0.05 nor
            simple fractions, or held-out sites without sites.
        DataError: too few patients, an unknown site, a patient at several sites, or a class that is missing in
            training.
    """
    if count < 1:
        raise UsageError(f"{count} splits; the number must be at least 1")
    rest, held_out = _hold_out(labels, sites, held_out_sites)  # step 1
    no_test_share = bool(held_out_sites) or test_share == 0
    shares = (_share(val_share, "validation"), Fraction(0) if no_test_share else _share(test_share, "test"))
    subsets_needed = math.lcm(*(share.denominator for share in shares))
    val, test = (int(share * subsets_needed) for share in shares)
    if val + test >= subsets_needed:
        raise UsageError(f"shares {val_share:g} and {test_share:g} leave nothing for training")
    _need_cases(
        rest,
        subsets_needed,
        f"are too few for these shares, which need {subsets_needed} subsets of at least one case; "
        "choose simpler shares such as 0.2 (5 subsets), or folds",
    )
    splits = []
    for index in range(count):  # step 4
        subsets = _subsets(rest, subsets_needed, seed + index)
        parts = (subsets[val + test :], subsets[:val], subsets[val : val + test])
        train_part, val_part, test_part = (tuple(sorted(sum(part, ()))) for part in parts)
        splits.append(Split(train_part, val_part, held_out if held_out_sites else test_part))
    return _checked(splits, labels, PARTS if held_out_sites or test_share else ("train", "val"))


def read_sites(path: Path) -> dict[str, str]:
    """Read the sites of a cohort.

    Args:
        path: labels.csv with a column ``site`` beside ``slide_id``.

    Returns:
        Slide name to site.

    Raises:
        DataError: the file cannot be read, or lacks a column or a value.
    """
    sites = {row["slide_id"]: row["site"] for row in read_table(path, ("slide_id", "site"))}
    nameless = [slide_id for slide_id, site in sites.items() if not slide_id or not site]
    if nameless:
        raise DataError(
            f'"{path}": slide "{nameless[0]}" has no site; --held-out-site needs a value in the column site'
        )
    return sites


def write_splits(folder: Path, splits: Sequence[Split]) -> list[Path]:
    """Write splits as CLAM does: ``splits_i.csv``, one column per part, and ``splits_i_bool.csv``, one row per slide.

    Args:
        folder: created if it is missing; files with the same names are replaced.
        splits: split i is written to ``splits_i.csv``.

    Returns:
        The paths of the ``splits_i.csv``.
    """
    paths = []
    for index, split in enumerate(splits):
        columns = [split.part(part) for part in PARTS]
        height = max(map(len, columns))
        table = [[str(row), *(column[row] if row < len(column) else "" for column in columns)] for row in range(height)]
        rows = [[slide, *(str(part == other) for other in PARTS)] for part in PARTS for slide in split.part(part)]
        write_text(folder / f"splits_{index}_bool.csv", _csv([["", *PARTS], *rows]))
        paths.append(folder / f"splits_{index}.csv")
        write_text(paths[-1], _csv([["", *PARTS], *table]))
    return paths


def _hold_out(
    labels: Mapping[str, SlideLabel], sites: Mapping[str, str] | None, held_out_sites: Collection[str]
) -> tuple[dict[str, SlideLabel], tuple[str, ...]]:
    """Step 1: the slides to divide, and the slides of the held-out sites."""
    if not held_out_sites:
        return dict(labels), ()
    if sites is None:
        raise UsageError("held-out sites need a column site in labels.csv")
    unplaced = sorted(labels.keys() - sites.keys())
    if unplaced:
        raise DataError(f'slide "{unplaced[0]}" has no site')
    known = {sites[slide_id] for slide_id in labels}
    unknown = sorted(set(held_out_sites) - known)
    if unknown:
        raise DataError(f"no slide is from site {', '.join(unknown)}; the sites are {', '.join(sorted(known))}")
    test = tuple(sorted(slide_id for slide_id in labels if sites[slide_id] in held_out_sites))
    rest = {slide_id: label for slide_id, label in labels.items() if slide_id not in test}
    across = sorted({labels[slide_id].case_id for slide_id in test} & {label.case_id for label in rest.values()})
    if across:
        raise DataError(
            f'case "{across[0]}" has slides from a held-out site and from another; hold out both sites, or remove '
            "the case from labels.csv"
        )
    return rest, test


def _need_cases(labels: Mapping[str, SlideLabel], least: int, complaint: str) -> None:
    cases = len({label.case_id for label in labels.values()})
    if cases < least:
        raise DataError(f"{cases} cases {complaint}")


def _subsets(labels: Mapping[str, SlideLabel], count: int, seed: int) -> list[tuple[str, ...]]:
    """Step 2: the slide names of each subset, sorted."""
    slides = sorted(labels)
    cases = [labels[slide_id].case_id for slide_id in slides]
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    classes = [labels[slide_id].label for slide_id in slides]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about rare classes, which step 5 reports
        try:
            folds = [test for _, test in splitter.split(slides, classes, cases)]
        except ValueError as error:
            raise DataError(f"{len(slides)} slides cannot be divided into {count} subsets: {error}") from error
    return [tuple(slides[place] for place in fold) for fold in folds]


def _share(share: float, part: str) -> Fraction:
    fraction = Fraction(share).limit_denominator(MAX_SUBSETS) if 0 < share < 1 else Fraction(0)
    if not 0 < fraction < 1 or abs(float(fraction) - share) > _SHARE_TOLERANCE:
        raise UsageError(
            f"{part} share is {share:g}; it must be a multiple of 0.05 or a fraction such as 1/3, between 0 and 1"
        )
    return fraction


def _checked(
    splits: Sequence[Split], labels: Mapping[str, SlideLabel], parts: Sequence[Part] = PARTS
) -> tuple[Split, ...]:
    """Step 5."""
    classes = sorted({label.label for label in labels.values()})
    for index, split in enumerate(splits):
        for part in parts:
            found = {labels[slide_id].label for slide_id in split.part(part)}
            absent = ", ".join(name for name in classes if name not in found)
            if absent and part == "train":
                raise DataError(f"split {index} has no slide for training of class {absent}; choose fewer folds")
            if not found:
                raise DataError(f"split {index} has no slide in its {part} part; choose fewer folds")
            if absent:
                _log.warning("split %d has no slide of class %s in its %s part", index, absent, part)
    return tuple(splits)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
