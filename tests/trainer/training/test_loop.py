"""HAG-MIL in the training loop: learning, run folder, exact resume, signals, errors."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hagmil.errors import DataError, EnvironmentLacks, Interrupted, UsageError
from hagmil.trainer.checkpoints.checkpoint import (
    BEST,
    CARD_NAME,
    LAST,
    WEIGHTS_NAME,
    CheckpointCard,
    build_models,
    load_checkpoint,
)
from hagmil.trainer.config.training import HagMilConfig
from hagmil.trainer.evaluation.evaluate_checkpoint import evaluate_checkpoint
from hagmil.trainer.training.loop import train
from hagmil.trainer.training.progress import TrainingProgress
from hagmil.trainer.training.run_folder import RunMetrics
from tests.trainer.cohorts import THREE_STAGES, configured, write_cohort, write_slide, write_split


class Killed(Exception):
    """Raised by a test to simulate a crash."""


class Whole(NamedTuple):
    """A cohort that no test changes, and an uninterrupted run on it."""

    tree: dict[str, Any]
    out: Path
    metrics: RunMetrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    tree = write_cohort(tmp_path_factory.mktemp("whole"))
    config = configured(tree)
    return Whole(tree, config.out, train(config))


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return write_cohort(tmp_path)


def test_training_learns_to_separate_the_classes(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, parts={"train": 8, "val": 4, "test": 6}, stages=THREE_STAGES)
    metrics = train(configured(tree, schedule={"max_epochs": 10}, optimiser={"learning_rate": 1e-2}))
    assert metrics.validation.auc == 1.0
    assert metrics.test.accuracy == 1.0
    assert metrics.test.slides == 6


def test_the_run_folder_contains_configuration_checkpoints_metrics_curves_and_log(tmp_path: Path) -> None:
    config = configured(write_cohort(tmp_path, stages=THREE_STAGES))
    metrics = train(config)
    out = config.out
    assert HagMilConfig.model_validate(yaml.safe_load((out / "config.yaml").read_text())) == config
    assert json.loads((out / "metrics.json").read_text()) == metrics.model_dump(mode="json")
    assert list((out / "tensorboard").iterdir())
    assert "epoch 3: training loss" in (out / "train.log").read_text()
    assert {path.name for path in (out / LAST).iterdir()} == {"model.safetensors", "checkpoint.json"}
    card = load_checkpoint(out).card
    assert card == load_checkpoint(out / BEST).card
    assert card.kind == "hag-mil"
    assert card.classes == ("normal", "tumour")
    assert [(s.name, s.spacing_um, s.keep) for s in card.stages] == [
        ("low", 2.0, 5),
        ("middle", 1.0, 5),
        ("high", 0.5, None),
    ]
    assert (card.feature_dim, card.patch_px, card.model) == (6, 64, config.model)
    assert (card.backbone.name, card.backbone.sha256) == ("tiny", "b" * 64)
    assert card.training.epoch == metrics.best_epoch
    assert card.training.validation == metrics.validation


def test_equal_seeds_give_equal_weights_and_different_seeds_different_weights(tree: dict[str, Any]) -> None:
    weights = []
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        config = configured(tree, out=str(Path(tree["out"]) / name), seed=seed)
        train(config)
        weights.append(_weights(config.out / LAST))
    assert _equal(weights[0], weights[1])
    assert not _equal(weights[0], weights[2])


@pytest.mark.parametrize("dies_at", [("train", 1, 3), ("validation", 1, 2), ("train", 2, 1), ("train", 3, 4)])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    whole: Whole, tmp_path: Path, dies_at: tuple[str, int, int]
) -> None:
    broken = configured(whole.tree, out=str(tmp_path / "broken"))
    with pytest.raises(Killed):
        train(broken, progress=_at(dies_at, _die))
    assert train(broken, resume=True) == whole.metrics
    for checkpoint in (BEST, LAST):
        assert _equal(_everything(broken.out / checkpoint), _everything(whole.out / checkpoint))


def test_a_run_with_random_keep_and_teaching_resumes_with_the_same_weights(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=THREE_STAGES)
    cascade = {"keep_random": True, "validation_keeps": [1, "all"], "teach": 0.3, "teach_from": 2}
    changes = {"cascade": cascade, "schedule": {"max_epochs": 2}}
    whole, broken = (configured(tree, out=str(tmp_path / name), **changes) for name in ("whole", "broken"))
    expected = train(whole)
    with pytest.raises(Killed):
        train(broken, progress=_at(("train", 2, 3), _die))
    assert train(broken, resume=True) == expected
    for checkpoint in (BEST, LAST):
        assert _equal(_everything(broken.out / checkpoint), _everything(whole.out / checkpoint))


def test_weights_chosen_with_several_numbers_of_kept_patches_are_tested_with_more_of_them(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, parts={"train": 4, "val": 5, "test": 2}, stages=THREE_STAGES)
    cascade = {"keep_validation": 6, "validation_keeps": [1, "all"]}
    config = configured(tree, cascade=cascade, schedule={"max_epochs": 1})
    with pytest.raises(Killed):
        train(config, progress=_at(("kept patches", 1, 3), _die))
    assert load_checkpoint(config.out).card.tested is None
    metrics = train(config, resume=True)
    card = load_checkpoint(config.out).card
    assert card == CheckpointCard.model_validate_json((config.out / BEST / CARD_NAME).read_bytes())
    assert [row.keep for row in card.tested.keeps] == [4, 6, 8, 16, None]  # the largest slide has 5 and 20 patches
    assert (card.tested.part, card.tested.slides) == ("val", 5)
    assert {row.keep: row.right for row in card.tested.keeps}[6] == metrics.validation.accuracy
    assert card.certainty.keeps == (4, 8, 16, 32, 64)
    assert (card.certainty.method, card.certainty.slides, card.certainty.largest_bag) == ("quantile", 5, 5)
    evaluated = evaluate_checkpoint(config.out, config, part="val", keeps=[4, 6, 8, 16], resamples=10)
    assert evaluated.tested == card.tested


def test_a_training_with_one_number_of_kept_patches_ends_without_this_test(whole: Whole) -> None:
    card = load_checkpoint(whole.out).card
    assert (card.tested, card.certainty) == (None, None)


@pytest.mark.parametrize("stops_at", [("train", 1, 3), ("train", 2, 4), ("validation", 2, 1), ("test", 3, 1)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_between_two_slides_and_it_can_be_resumed(
    whole: Whole, tmp_path: Path, stops_at: tuple[str, int, int], number: signal.Signals
) -> None:
    if stops_at[0] == "test":
        stops_at = ("test", whole.metrics.best_epoch, stops_at[2])
    broken = configured(whole.tree, out=str(tmp_path / "broken"))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name}.*--resume"):
        train(broken, progress=_at(stops_at, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) is before

    seen: list[TrainingProgress] = []
    assert train(broken, resume=True, progress=seen.append) == whole.metrics
    assert _equal(_everything(broken.out / LAST), _everything(whole.out / LAST))
    if stops_at[0] == "train":
        first = (seen[0].phase, seen[0].epoch, seen[0].done)
        assert first == (("train", stops_at[1], stops_at[2] + 1) if stops_at[2] < 4 else ("validation", 2, 1))


def test_a_run_whose_process_was_killed_can_be_resumed(whole: Whole, tmp_path: Path) -> None:
    broken = configured(whole.tree, out=str(tmp_path / "broken"))
    script = (
        "import os, signal, sys, yaml\n"
        "from hagmil.trainer.config.training import parse_config\n"
        "from hagmil.trainer.training.loop import train\n"
        "def watch(state):\n"
        "    if (state.phase, state.epoch, state.done) == ('train', 2, 3):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(parse_config(yaml.safe_load(sys.argv[1]), source='test'), progress=watch)\n"
    )
    command = [sys.executable, "-c", script, broken.to_yaml()]
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run(command, cwd=root, check=False, capture_output=True).returncode == -signal.SIGKILL
    train(broken, resume=True)
    assert _equal(_everything(broken.out / LAST), _everything(whole.out / LAST))


def test_resuming_without_a_run_starts_one(tree: dict[str, Any]) -> None:
    assert train(configured(tree), resume=True).epochs == 3


def test_resuming_a_finished_run_with_more_epochs_continues_it(whole: Whole, tmp_path: Path) -> None:
    run = configured(whole.tree, out=str(tmp_path / "run"), schedule={"max_epochs": 2})
    train(run)
    metrics = train(configured(whole.tree, out=str(run.out), schedule={"max_epochs": 3}), resume=True)
    assert metrics.epochs == 3
    assert _equal(_weights(run.out / LAST), _weights(whole.out / LAST))


def test_a_folder_with_a_run_is_not_overwritten(whole: Whole) -> None:
    before = (whole.out / LAST / WEIGHTS_NAME).read_bytes()
    with pytest.raises(UsageError, match="--resume") as caught:
        train(configured(whole.tree))
    assert caught.value.code == "run_exists"
    assert (whole.out / LAST / WEIGHTS_NAME).read_bytes() == before


def test_a_run_whose_configuration_lacks_newer_keys_can_be_resumed(whole: Whole, tmp_path: Path) -> None:
    run = configured(whole.tree, out=str(tmp_path / "run"), schedule={"max_epochs": 2})
    train(run)
    stored = yaml.safe_load((run.out / "config.yaml").read_text())
    stored["cascade"] = {key: stored["cascade"][key] for key in ("keep_train", "keep_validation")}
    (run.out / "config.yaml").write_text(yaml.safe_dump(stored))
    assert train(configured(whole.tree, out=str(run.out), schedule={"max_epochs": 3}), resume=True).epochs == 3
    with pytest.raises(UsageError, match=r"started with a different cascade\.teach;"):
        train(configured(whole.tree, out=str(run.out), cascade={**whole.tree["cascade"], "teach": 0.3}), resume=True)


def test_resuming_with_a_different_recipe_is_an_error(whole: Whole) -> None:
    with pytest.raises(UsageError, match=r"loss\.k_sample, seed"):
        train(configured(whole.tree, seed=5, loss={"k_sample": 3}), resume=True)


def test_resuming_with_different_data_is_an_error(tree: dict[str, Any], tmp_path: Path) -> None:
    train(configured(tree))
    write_split(tmp_path / "split.csv", {"train": ["train-0", "train-1"], "val": ["val-0"], "test": []})
    with pytest.raises(DataError, match="different split"):
        train(configured(tree, schedule={"max_epochs": 4}), resume=True)


def test_an_error_in_the_data_leaves_no_run_behind(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "features" / "train-0.h5").rename(tmp_path / "away.h5")
    with pytest.raises(DataError, match="train-0"):
        train(configured(tree))
    (tmp_path / "away.h5").rename(tmp_path / "features" / "train-0.h5")
    train(configured(tree))


def test_training_stops_early_when_validation_no_longer_improves(tree: dict[str, Any]) -> None:
    slow = {**tree, "optimiser": {"learning_rate": 1e-12, "weight_decay": 0}}
    metrics = train(configured(slow, schedule={"max_epochs": 50, "patience": 2}))
    assert metrics.stopped_early
    assert metrics.epochs == metrics.best_epoch + 2


def test_slides_without_tissue_are_left_out_logged_and_counted(
    tree: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for slide_id, label in (("train-2", 0), ("val-0", 0), ("test-1", 1)):
        write_slide(tmp_path / "features", slide_id, label, patches=0)
    with caplog.at_level(logging.WARNING):
        metrics = train(configured(tree))
    assert metrics.train_slides == 3
    assert metrics.empty_slides == {"train": ("train-2",), "val": ("val-0",), "test": ("test-1",)}
    assert (metrics.validation.slides, metrics.validation.empty_slides) == (1, 1)
    assert (metrics.test.slides, metrics.test.empty_slides) == (1, 1)
    assert 'slide "train-2" (train) has no tissue' in caplog.text
    assert 'slide "train-2" (train) has no tissue' in (Path(tree["out"]) / "train.log").read_text()


def test_features_that_are_not_finite_name_slide_and_stage(tree: dict[str, Any], tmp_path: Path) -> None:
    write_slide(tmp_path / "features", "train-3", 1, patches=2, value=float("nan"))
    with pytest.raises(DataError, match='slide "train-3", stage low: the features contain values'):
        train(configured(tree))


def test_a_diverged_training_names_slide_and_stage(tree: dict[str, Any]) -> None:
    config = configured(tree)
    optimiser = config.optimiser.model_copy(update={"learning_rate": 1e30})  # more than a configuration may have
    with pytest.raises(UsageError, match=r"slide \"train-\d\", stage .*lower optimiser\.learning_rate") as caught:
        train(config.model_copy(update={"optimiser": optimiser}))
    assert caught.value.code == "diverged"


def test_no_test_slides_and_one_class_in_validation_leave_metrics_undefined(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    names = {"train": [f"train-{i}" for i in range(4)], "val": ["val-0"], "test": []}
    write_split(tmp_path / "split.csv", names)
    metrics = train(configured(tree))
    assert metrics.validation.auc is None
    assert metrics.validation.accuracy is not None
    assert (metrics.test.slides, metrics.test.auc, metrics.test.loss) == (0, None, None)


def test_a_single_stage_can_be_trained(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=[("only", 0.5)])
    config = configured(tree)
    train(config)
    assert [stage.keep for stage in load_checkpoint(config.out).card.stages] == [None]


def test_progress_reports_every_slide_of_every_phase(tree: dict[str, Any]) -> None:
    seen: list[TrainingProgress] = []
    metrics = train(configured(tree, schedule={"max_epochs": 2}), progress=seen.append)
    by_slides = [(state.phase, state.epoch, state.done, state.total) for state in seen]
    epochs = [
        (phase, epoch, done + 1, total)
        for epoch in (1, 2)
        for phase, total in (("train", 4), ("validation", 2))
        for done in range(total)
    ]
    end = [(phase, metrics.best_epoch, done + 1, 2) for phase in ("validation", "test") for done in range(2)]
    assert by_slides == epochs + end


def test_training_does_not_change_the_random_state_of_the_caller(tree: dict[str, Any]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(configured(tree, schedule={"max_epochs": 1}))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_an_error(tree: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentLacks, match="cuda"):
        train(configured(tree, device="cuda"))


def _at(moment: tuple[str, int, int], act: Any) -> Any:
    def watch(state: TrainingProgress) -> None:
        if (state.phase, state.epoch, state.done) == moment:
            act()

    return watch


def _die() -> None:
    raise Killed


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    models = build_models(load_checkpoint(folder))
    return {f"{i}.{name}": w for i, model in enumerate(models) for name, w in model.state_dict().items()}


def _everything(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, and the state of the optimisers if there is one."""
    return load_file(folder / WEIGHTS_NAME)


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
