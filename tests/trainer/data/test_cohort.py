from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from hagmil.errors import DataError
from hagmil.trainer.data.cohort import Cohort, assemble, read_bag
from hagmil.trainer.data.feature_sources import Hdf5Source
from hagmil.trainer.data.tables import read_tables
from tests.trainer.cohorts import THREE_STAGES, write_cohort, write_slide, write_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cohort(tmp_path)
    return tmp_path


def _open(folder: Path, classes: list[str] | None = None) -> Cohort:
    tables = read_tables(folder / "labels.csv", folder / "split.csv")
    return assemble(Hdf5Source(folder / "features"), tables, classes=classes)


def test_a_cohort_has_the_common_metadata_of_its_slides(tmp_path: Path) -> None:
    write_cohort(tmp_path, stages=THREE_STAGES)
    cohort = _open(tmp_path)
    assert cohort.classes == ("normal", "tumour")
    assert [(stage.name, stage.spacing_um, stage.factor) for stage in cohort.stages] == [
        ("low", 2.0, 2),
        ("middle", 1.0, 2),
        ("high", 0.5, None),
    ]
    assert (cohort.feature_dim, cohort.patch_px, cohort.backbone_name) == (6, 64, "tiny")
    assert [slide.label for slide in cohort.train] == [0, 1, 0, 1]
    assert cohort.empty == {"train": (), "val": (), "test": ()}


def test_classes_can_be_given_in_any_order(folder: Path) -> None:
    assert [slide.label for slide in _open(folder, ["tumour", "normal"]).train] == [1, 0, 1, 0]


def test_a_bag_contains_all_rows_of_all_stages(folder: Path) -> None:
    bag = read_bag(_open(folder).train[2])
    assert (bag.slide_id, bag.label) == ("train-2", 0)
    assert [(tuple(stage.shape), stage.dtype) for stage in bag.features] == [
        ((3, 6), torch.float32),
        ((12, 6), torch.float16),
    ]


def test_stages_can_differ_by_a_factor_of_four(tmp_path: Path) -> None:
    write_cohort(tmp_path, stages=[("low", 2.0), ("high", 0.5)])
    assert [stage.factor for stage in _open(tmp_path).stages] == [4, None]


@pytest.mark.parametrize("stages", [[("a", 1.0), ("b", 0.4)], [("a", 0.5), ("b", 1.0)], [("a", 0.5), ("b", 0.5)]])
def test_stages_without_integer_ratios_from_coarse_to_fine_are_refused(
    tmp_path: Path, stages: list[tuple[str, float]]
) -> None:
    write_cohort(tmp_path, stages=stages)
    with pytest.raises(DataError, match="must be an integer of at least 2"):
        _open(tmp_path)


def test_a_wrong_number_of_rows_names_slide_and_stage(folder: Path) -> None:
    write_slide(folder / "features", "val-1", 1, patches=3, extra_rows=1)
    with pytest.raises(DataError, match=r'slide "val-1": stage high has 13 rows, but 2² times the 3 rows of low'):
        _open(folder)


def test_slides_with_another_backbone_or_other_stages_are_named(folder: Path) -> None:
    write_slide(folder / "features", "test-1", 1, backbone_sha256="c" * 64)
    with pytest.raises(DataError, match=r'"test-1".*different backbones'):
        _open(folder)
    write_slide(folder / "features", "test-1", 1, stages=[("low", 2.0), ("high", 1.0)])
    with pytest.raises(DataError, match=r'"test-1".*different spacings'):
        _open(folder)


def test_slides_without_features_or_label_are_named(folder: Path) -> None:
    (folder / "features" / "val-0.h5").unlink()
    with pytest.raises(DataError, match='"val-0"; run hagmil extract') as caught:
        _open(folder)
    assert caught.value.code == "features_missing"
    write_split(folder / "split.csv", {"train": ["train-0", "stranger"], "val": [], "test": []})
    with pytest.raises(DataError, match='"stranger"'):
        _open(folder)


def test_a_file_that_is_not_a_feature_file_is_named(folder: Path) -> None:
    (folder / "features" / "val-0.h5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match=r"val-0\.h5"):
        _open(folder)


def test_only_the_first_of_many_names_are_listed(folder: Path) -> None:
    names = [f"s{i}" for i in range(8)]
    write_split(folder / "split.csv", {"train": names, "val": [], "test": []})
    with pytest.raises(DataError, match=r'"s4" and 3 more$'):
        _open(folder)


def test_a_label_that_is_not_a_class_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match='not a class: "tumour"; the classes are normal, benign'):
        _open(folder, ["normal", "benign"])


def test_a_class_without_tissue_in_training_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match='class "benign"'):
        _open(folder, ["normal", "tumour", "benign"])
    for slide_id in ("train-1", "train-3"):
        write_slide(folder / "features", slide_id, 1, patches=0)
    with pytest.raises(DataError, match='class "tumour"'):
        _open(folder)


def test_a_split_without_validation_is_refused(folder: Path) -> None:
    write_split(folder / "split.csv", {"train": ["train-0", "train-1"], "val": [], "test": []})
    with pytest.raises(DataError, match="no slide with tissue for validation"):
        _open(folder)


def test_a_split_without_slides_is_refused(folder: Path) -> None:
    (folder / "split.csv").write_text(",train,val,test\n")
    with pytest.raises(DataError, match=r"needs at least two classes|contains no slides"):
        _open(folder)


def test_a_patient_in_two_parts_gives_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("case-val-0", "case-train-0"))
    with caplog.at_level(logging.WARNING):
        _open(folder)
    assert 'case "case-train-0"' in caplog.text


def test_digests_change_with_the_data(folder: Path) -> None:
    before = _open(folder).digests
    assert _open(folder).digests == before
    write_slide(folder / "features", "train-0", 0, patches=4)
    after = _open(folder).digests
    assert after.features_sha256 != before.features_sha256
    assert (after.labels_sha256, after.split_sha256) == (before.labels_sha256, before.split_sha256)
