"""Splits are grouped by patient and stratified by class, and reproducible from the seed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hagmil.errors import DataError, UsageError
from hagmil.trainer.data.labels import PARTS, SlideLabel, Split, read_split, shared_cases
from hagmil.trainer.data.published_splits import read_clam_split
from hagmil.trainer.data.splits import make_folds, make_splits, read_sites, write_splits


def _cohort(cases: int = 40, slides_per_case: int = 2, classes: tuple[str, ...] = ("n", "t")) -> dict[str, SlideLabel]:
    return {
        f"{case:03d}_{slide}": SlideLabel(f"{case:03d}_{slide}", f"case{case}", classes[case % len(classes)])
        for case in range(cases)
        for slide in range(slides_per_case)
    }


def _sites(labels: dict[str, SlideLabel], count: int = 4) -> dict[str, str]:
    return {slide_id: f"site{int(label.case_id[4:]) % count}" for slide_id, label in labels.items()}


def test_each_slide_is_in_one_part_of_a_fold_and_in_test_once() -> None:
    labels = _cohort()
    folds = make_folds(labels, 5)
    assert sorted(slide for fold in folds for slide in fold.test) == sorted(labels)
    assert sorted(slide for fold in folds for slide in fold.val) == sorted(labels)
    for fold in folds:
        assert sorted(_all(fold)) == sorted(labels)


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_parts(seed: int) -> None:
    labels = _cohort(30, 3)
    splits = (*make_folds(labels, 5, seed=seed), *make_splits(labels, 2, seed=seed))
    assert [shared_cases(split, labels) for split in splits] == [[]] * 7


def test_classes_keep_their_proportions() -> None:
    labels = _cohort(60, 1, ("a", "a", "b"))
    for split in (*make_folds(labels, 5, seed=3), *make_splits(labels, val_share=0.2, test_share=0.2, seed=3)):
        for part, size in zip(PARTS, (36, 12, 12), strict=True):
            found = Counter(labels[slide].label for slide in split.part(part))
            assert found == {"a": size * 2 // 3, "b": size // 3}


def test_splits_depend_on_the_seed_and_not_on_the_order_of_the_table() -> None:
    labels = _cohort()
    reversed_labels = dict(reversed(labels.items()))
    assert make_folds(labels, 4, seed=1) == make_folds(reversed_labels, 4, seed=1)
    assert make_folds(labels, 4, seed=1) != make_folds(labels, 4, seed=2)
    assert make_splits(labels, 2, seed=1) == make_splits(reversed_labels, 2, seed=1)
    first, second = make_splits(labels, 2, seed=1)
    assert first != second


@pytest.mark.parametrize(
    ("val_share", "test_share"), [(0.1, 0.1), (0.2, 0.3), (0.25, 0.25), (0.05, 0.15), (1 / 3, 1 / 3), (0.25, 0)]
)
def test_the_parts_have_the_requested_shares(val_share: float, test_share: float) -> None:
    labels = _cohort(120, 1)
    (split,) = make_splits(labels, val_share=val_share, test_share=test_share)
    assert len(split.val) == pytest.approx(120 * val_share, abs=2)
    assert len(split.test) == pytest.approx(120 * test_share, abs=2)


def test_held_out_sites_are_the_test_part_of_every_fold_and_in_no_other_part() -> None:
    labels = _cohort()
    sites = _sites(labels)
    expected = sorted(slide for slide, site in sites.items() if site in {"site1", "site3"})
    options: dict[str, Any] = {"sites": sites, "held_out_sites": ("site1", "site3")}
    # All slides of one class are from sites 1 and 3, so this class is missing in training.
    with pytest.raises(DataError, match="class t"):
        make_folds(labels, 4, **options)
    mixed = {
        name: SlideLabel(name, label.case_id, "nt"[int(label.case_id[4:]) // 4 % 2]) for name, label in labels.items()
    }
    for split in (*make_folds(mixed, 4, **options), *make_splits(mixed, 2, **options)):
        assert sorted(split.test) == expected
        assert {sites[slide] for slide in (*split.train, *split.val)} == {"site0", "site2"}
        assert sorted(_all(split)) == sorted(labels)
    folds = make_folds(mixed, 4, **options)
    assert sorted(slide for fold in folds for slide in fold.val) == sorted(set(labels) - set(expected))


@pytest.mark.parametrize(
    ("sites", "held_out", "error", "message"),
    [
        (None, ("site1",), UsageError, "column site"),
        ("all", ("site9",), DataError, "the sites are site0, site1, site2, site3"),
        ("one missing", ("site1",), DataError, "has no site"),
        ("one case across", ("site1",), DataError, 'case "case0"'),
        ("all", ("site0", "site1", "site2", "site3"), DataError, "0 cases"),
    ],
)
def test_invalid_held_out_sites_are_an_error(
    sites: str | None, held_out: tuple[str, ...], error: type[Exception], message: str
) -> None:
    labels = _cohort()
    table = None if sites is None else _sites(labels)
    if table is not None and sites == "one missing":
        del table["000_0"]
    if table is not None and sites == "one case across":
        table["000_0"] = "site1"
    with pytest.raises(error, match=message):
        make_folds(labels, 3, sites=table, held_out_sites=held_out)


def test_fewer_cases_than_folds_is_an_error() -> None:
    with pytest.raises(DataError, match=r"4 cases cannot be divided into 5"):
        make_folds(_cohort(4, 10), 5)


def test_too_few_cases_for_the_shares_is_an_error_that_suggests_simpler_ones() -> None:
    labels = _cohort(18, 1)
    with pytest.raises(DataError, match=r"18 cases are too few .* 20 subsets .* 0\.2"):
        make_splits(labels, val_share=0.15, test_share=0.15)
    (split,) = make_splits(labels, val_share=0.2, test_share=0.2)
    assert len(split.val) + len(split.test) in range(6, 10)


@pytest.mark.parametrize("folds", [0, 1, 2])
def test_too_few_folds_are_refused(folds: int) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        make_folds(_cohort(), folds)


def test_a_class_that_is_missing_in_training_is_an_error() -> None:
    labels = _cohort(12, 1)
    labels["rare"] = SlideLabel("rare", "rare", "r")
    with pytest.raises(DataError, match="for training of class r"):
        make_folds(labels, 3)


def test_a_class_that_is_missing_in_test_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = _cohort(30, 1)
    for index in range(4):
        labels[f"rare{index}"] = SlideLabel(f"rare{index}", f"rare{index}", "r")
    with caplog.at_level(logging.WARNING):
        make_folds(labels, 5)
    assert "no slide of class r in its test part" in caplog.text


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 0.1), (0.1, 1.0), (0.01, 0.1), (-0.1, 0.1), (float("nan"), 0.1)])
def test_invalid_shares_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="share"):
        make_splits(_cohort(), val_share=shares[0], test_share=shares[1])


def test_zero_splits_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        make_splits(_cohort(), 0)


def test_written_splits_are_read_back_in_both_forms(tmp_path: Path) -> None:
    folds = make_folds(_cohort(), 3)
    paths = write_splits(tmp_path / "splits", folds)
    assert [path.name for path in paths] == ["splits_0.csv", "splits_1.csv", "splits_2.csv"]
    for path, fold in zip(paths, folds, strict=True):
        assert read_split(path) == read_clam_split(path) == fold
        assert read_clam_split(path.with_name(f"{path.stem}_bool.csv")) == fold


def test_a_written_split_has_the_form_of_clam(tmp_path: Path) -> None:
    write_splits(tmp_path, [Split(("a", "b"), ("c",), ("d",))])
    assert (tmp_path / "splits_0.csv").read_text() == ",train,val,test\n0,a,c,d\n1,b,,\n"
    assert (tmp_path / "splits_0_bool.csv").read_text() == (
        ",train,val,test\na,True,False,False\nb,True,False,False\nc,False,True,False\nd,False,False,True\n"
    )


def test_sites_are_read_from_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,case_id,label,site\na,1,n,Nijmegen\nb,2,t, Utrecht\n")
    assert read_sites(path) == {"a": "Nijmegen", "b": "Utrecht"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,case_id,label\na,1,n\n", "has no column site"),
        ("slide_id,site\na,\n", 'slide "a" has no site'),
        ("site\nx\n", "has no column slide_id"),
    ],
)
def test_a_slide_without_a_site_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_sites(path)


def test_missing_labels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_sites(tmp_path / "labels.csv")


def _all(split: Split) -> Iterable[str]:
    return (*split.train, *split.val, *split.test)
