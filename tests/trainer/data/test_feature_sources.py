"""Training gives the same result for all layouts of features, labels and splits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from hagmil.errors import DataError, UsageError
from hagmil.features import read_features
from hagmil.trainer.checkpoints.checkpoint import LAST, load_checkpoint
from hagmil.trainer.data.cohort import open_training_cohort, read_bag
from hagmil.trainer.data.labels import read_labels, read_split
from hagmil.trainer.data.splits import write_splits
from hagmil.trainer.data.tables import read_tables
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import THREE_STAGES, configured, write_cohort
from tests.trainer.hierarchy_cohorts import HIERARCHY, write_hierarchy_cohort

PARTS = {"train": 4, "val": 4, "test": 4}
FOLDERS = ("cam_level_2", "cam_level_1_corresponding", "cam_level_0_corresponding")


def _as_hag_mil_pt(folder: Path) -> dict[str, Any]:
    """Write the features of the cohort in the layout of the published HAG-MIL."""
    for path in (folder / "features").glob("*.h5"):
        for name, stage in zip(FOLDERS, read_features(path).stages, strict=True):
            (folder / name / "pt_files").mkdir(parents=True, exist_ok=True)
            torch.save(torch.from_numpy(stage.features), folder / name / "pt_files" / f"{path.stem}.pt")
    return {"layout": "hag-mil-pt", "features": str(folder / "cam"), "spacing_um": [2.0, 1.0, 0.5], "patch_px": 64}


def _as_hmil_pt(folder: Path) -> dict[str, Any]:
    (folder / "pt").mkdir()
    for path in (folder / "features").glob("*.h5"):
        torch.save(torch.from_numpy(read_features(path).stages[0].features), folder / "pt" / f"{path.stem}.pt")
    return {"layout": "hmil-pt", "features": str(folder / "pt"), "spacing_um": [0.5], "patch_px": 64}


def _as_pickled_lists(folder: Path, *, numbers: bool = False) -> dict[str, Any]:
    labels, split = read_labels(folder / "labels.csv"), read_split(folder / "split.csv")
    (folder / "lists").mkdir()
    for part in ("train", "val", "test"):
        named = [(slide, labels[slide].label) for slide in split.part(part)]
        entries = [
            [slide, HIERARCHY["fine"].index(name) if numbers else name, f"/x/{slide}.pt"] for slide, name in named
        ]
        (folder / "lists" / f"{part}_splits_2.pkl").write_bytes(pickle.dumps(entries))
    return {"labels": None, "split": str(folder / "lists"), "fold": 2}


def test_published_hag_mil_features_train_the_same_weights_as_hdf5(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=THREE_STAGES)
    ours = configured(tree, out=str(tmp_path / "h5"))
    theirs = configured(tree, out=str(tmp_path / "pt"), data={**tree["data"], **_as_hag_mil_pt(tmp_path)})
    assert train(ours) == train(theirs)
    one, other = (load_checkpoint(config.out / LAST).card for config in (ours, theirs))
    assert one.weights_sha256 == other.weights_sha256
    assert [(stage.name, stage.spacing_um) for stage in other.stages] == [("2um", 2.0), ("1um", 1.0), ("0.5um", 0.5)]
    assert (other.patch_px, other.backbone) == (64, None)
    assert train(theirs, resume=True).epochs == 3


@pytest.mark.parametrize("numbers", [False, True])
def test_published_hmil_features_and_lists_train_the_same_weights_as_hdf5(tmp_path: Path, numbers: bool) -> None:
    tree = write_hierarchy_cohort(tmp_path, parts=PARTS)
    data = {**_as_hmil_pt(tmp_path), **_as_pickled_lists(tmp_path, numbers=numbers)}
    ours, theirs = configured(tree, out=str(tmp_path / "h5")), configured(tree, out=str(tmp_path / "x"), data=data)
    assert train(ours) == train(theirs)
    one, other = (load_checkpoint(config.out / LAST).card for config in (ours, theirs))
    assert one.weights_sha256 == other.weights_sha256


def test_both_forms_of_a_clam_split_give_the_same_split(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path)
    split = read_split(tmp_path / "split.csv")
    write_splits(tmp_path / "splits", [split])
    found = read_tables(tmp_path / "labels.csv", tmp_path / "splits" / "splits_0_bool.csv").split
    assert found == split
    config = configured(tree, data={**tree["data"], "split": str(tmp_path / "splits" / "splits_0_bool.csv")})
    assert [slide.slide_id for slide in open_training_cohort(config).train] == list(split.train)


def test_a_published_bag_with_a_wrong_number_of_rows_names_the_slide(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=THREE_STAGES)
    data = {**tree["data"], **_as_hag_mil_pt(tmp_path)}
    torch.save(torch.zeros(5, 6), tmp_path / FOLDERS[1] / "pt_files" / "val-1.pt")
    with pytest.raises(DataError, match=r'slide "val-1".*has 5 rows'):
        train(configured(tree, data=data))


def test_pickled_lists_can_be_used_with_a_table_of_labels(tmp_path: Path) -> None:
    tree = write_hierarchy_cohort(tmp_path, parts=PARTS)
    data = {**tree["data"], **_as_pickled_lists(tmp_path), "labels": tree["data"]["labels"]}
    cohort = open_training_cohort(configured(tree, data=data))
    assert [slide.label for slide in cohort.train] == [0, 1, 2, 3]
    assert cohort.digests.labels_sha256 != cohort.digests.split_sha256


def test_training_can_use_some_stages_of_a_file(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=THREE_STAGES)
    cohort = open_training_cohort(configured(tree, data={**tree["data"], "stages": ["low", "high"]}))
    assert [(stage.name, stage.factor) for stage in cohort.stages] == [("low", 4), ("high", None)]
    assert [len(rows) for rows in read_bag(cohort.train[1]).features] == [2, 32]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"labels": None}, "labels must be given"),
        ({"patch_px": 64}, "HDF5 files contain spacing_um and patch_px"),
        ({"layout": "hmil-pt"}, "give patch_px and 1 spacing_um"),
        ({"layout": "hag-mil-pt", "patch_px": 64, "spacing_um": [0.5]}, "give patch_px and 3 spacing_um"),
        ({"layout": "hmil-pt", "patch_px": 64, "spacing_um": [0.5], "stages": ["a"]}, "layout hmil-pt has none"),
        ({"layout": "zarr"}, "hdf5"),
    ],
)
def test_keys_that_do_not_fit_the_layout_are_refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    paths = {"features": "f", "labels": "l", "split": "s"}
    with pytest.raises(UsageError, match=message):
        configured({"out": str(tmp_path)}, data={**paths, **data})
