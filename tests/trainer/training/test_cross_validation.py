"""Cross-validation: training of folds, resume, and the summary."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from hagmil.errors import DataError, UsageError
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.labels import read_labels
from hagmil.trainer.data.splits import make_folds, write_splits
from hagmil.trainer.training.cross_validation import SUMMARY_NAME, FoldsSummary, fold_splits, summarise, train_folds
from hagmil.trainer.training.progress import ProgressCallback, TrainingProgress
from hagmil.trainer.training.run_folder import METRICS_NAME
from tests.trainer.cohorts import configured, write_cohort


class Killed(Exception):
    """Raised by a test to simulate a crash."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a cohort with ``folds`` beside its labels; no test changes the files."""
    folder = tmp_path_factory.mktemp("cohort")
    tree = write_cohort(folder, parts={"train": 6, "val": 3, "test": 3})
    write_splits(folder / "folds", make_folds(read_labels(folder / "labels.csv"), 3))
    return {**tree, "schedule": {"max_epochs": 2}}


@pytest.fixture(scope="module")
def folds(tree: dict[str, Any]) -> Path:
    return Path(tree["data"]["labels"]).with_name("folds")


@pytest.fixture(scope="module")
def config(tree: dict[str, Any]) -> TrainingConfig:
    return configured(tree)


@pytest.fixture(scope="module")
def summary(config: TrainingConfig, folds: Path) -> FoldsSummary:
    """The summary of a finished cross-validation in ``config.out``."""
    return train_folds(config, folds)


def test_every_fold_has_a_run_folder_and_an_entry_in_the_summary(config: TrainingConfig, summary: FoldsSummary) -> None:
    assert FoldsSummary.model_validate_json((config.out / SUMMARY_NAME).read_bytes()) == summary
    assert [run.fold for run in summary.folds] == [0, 1, 2] == list(range(summary.planned))
    tested = []
    for run in summary.folds:
        metrics = json.loads((Path(run.out) / METRICS_NAME).read_text())
        assert metrics == run.metrics.model_dump(mode="json")
        tested.append(run.metrics.test.accuracy)
    assert sum(run.metrics.test.slides for run in summary.folds) == 12
    accuracy = summary.test["accuracy"]
    assert accuracy.folds == tuple(tested)
    numbers = [value for value in tested if value is not None]
    assert accuracy.mean == pytest.approx(statistics.fmean(numbers))
    assert accuracy.deviation == pytest.approx(statistics.stdev(numbers))
    assert "slides" not in summary.test


def test_finished_folds_are_skipped_and_an_interrupted_fold_is_resumed(
    tree: dict[str, Any], summary: FoldsSummary, folds: Path, tmp_path: Path
) -> None:
    broken = configured(tree, out=str(tmp_path / "broken"))

    def dying(place: int, _folds: int) -> ProgressCallback:
        def callback(state: TrainingProgress) -> None:
            if place == 1 and (state.phase, state.epoch, state.done) == ("train", 2, 2):
                raise Killed

        return callback

    with pytest.raises(Killed):
        train_folds(broken, folds, progress=dying)
    first = broken.out / "fold_0" / "checkpoints" / "best" / "model.safetensors"
    written = first.stat().st_mtime_ns
    partial = FoldsSummary.model_validate_json((broken.out / SUMMARY_NAME).read_bytes())
    assert (len(partial.folds), partial.planned) == (1, 3)

    trained: list[tuple[int, int]] = []

    def watching(place: int, _folds: int) -> ProgressCallback:
        return lambda state: trained.append((place, state.epoch))

    resumed = train_folds(broken, folds, progress=watching)
    assert first.stat().st_mtime_ns == written
    assert {place for place, _ in trained} == {1, 2}
    assert trained[0] == (1, 2)  # resumed in the second epoch
    assert [run.metrics for run in resumed.folds] == [run.metrics for run in summary.folds]


def test_finished_folds_are_not_trained_again(config: TrainingConfig, summary: FoldsSummary, folds: Path) -> None:
    def never(_place: int, _folds: int) -> ProgressCallback:
        raise AssertionError("a finished fold was trained")

    seen: list[int] = []
    again = train_folds(config, folds, progress=never, after_fold=lambda run, _: seen.append(run.fold))
    assert again == summary
    assert seen == [0, 1, 2]


@pytest.mark.usefixtures("summary")
def test_a_fold_with_a_different_recipe_or_different_data_is_an_error(
    tree: dict[str, Any], folds: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"fold_0.*a different seed"):
        train_folds(configured(tree, seed=5), folds)
    write_splits(tmp_path / "folds", make_folds(read_labels(Path(tree["data"]["labels"])), 3, seed=9))
    with pytest.raises(DataError, match=r"fold_0.*different split"):
        train_folds(configured(tree), tmp_path / "folds")


def test_splits_are_sorted_by_number_and_other_files_are_ignored(tmp_path: Path) -> None:
    for name in ("splits_10.csv", "splits_2.csv", "splits_2_bool.csv", "splits_x.csv"):
        (tmp_path / name).write_text("")
    assert [(fold, path.name) for fold, path in fold_splits(tmp_path)] == [(2, "splits_2.csv"), (10, "splits_10.csv")]


def test_a_folder_without_splits_is_an_error(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"contains no splits_0.csv; create folds with hagmil split"):
        train_folds(config, tmp_path)


def test_a_measure_that_is_undefined_in_a_fold_is_left_out_of_the_mean(summary: FoldsSummary) -> None:
    runs = summary.folds
    undefined = runs[0].metrics.model_copy(update={"test": runs[0].metrics.test.model_copy(update={"auc": None})})
    found = summarise([runs[0].model_copy(update={"metrics": undefined}), runs[1]], planned=2).test["auc"]
    assert found.folds == (None, runs[1].metrics.test.auc)
    assert (found.mean, found.deviation) == (runs[1].metrics.test.auc, None)
