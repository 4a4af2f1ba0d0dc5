"""HMIL in the training loop: batches, plateau schedule, curriculum, exact resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from hagmil.errors import DataError, Interrupted, UsageError
from hagmil.trainer.checkpoints.checkpoint import (
    BEST,
    LAST,
    WEIGHTS_NAME,
    build_models,
    load_checkpoint,
    read_training_state,
)
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.models.hmil import HierarchicalMil
from hagmil.trainer.training.loop import train
from hagmil.trainer.training.progress import TrainingProgress
from hagmil.trainer.training.run_folder import RunMetrics
from hagmil.trainer.training.state import TrainingState
from tests.trainer.cohorts import STAGES, configured, write_slide
from tests.trainer.hierarchy_cohorts import write_hierarchy_cohort

PARTS = {"train": 8, "val": 4, "test": 4}
SCHEDULE = {"max_epochs": 4, "batch_size": 3, "plateau": {"patience": 0, "threshold": 0.5}}


class Killed(Exception):
    """Raised by a test to simulate a crash."""


class Whole(NamedTuple):
    """A cohort that no test changes, and an uninterrupted run on it with ``SCHEDULE``."""

    tree: dict[str, Any]
    out: Path
    metrics: RunMetrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    tree = write_hierarchy_cohort(tmp_path_factory.mktemp("whole"), parts=PARTS)
    config = configured(tree, schedule=SCHEDULE)
    return Whole(tree, config.out, train(config))


@pytest.fixture(scope="module")
def default_run(whole: Whole) -> TrainingConfig:
    """A finished run on the same cohort with the schedule of its tree."""
    config = configured(whole.tree, out=str(whole.out.with_name("default")))
    train(config)
    return config


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return write_hierarchy_cohort(tmp_path, parts=PARTS)


def test_training_learns_fine_and_coarse_classes_that_agree(tmp_path: Path) -> None:
    tree = write_hierarchy_cohort(tmp_path, parts={"train": 16, "val": 8, "test": 12})
    schedule = {"max_epochs": 12, "batch_size": 8}
    metrics = train(configured(tree, schedule=schedule, optimiser={"learning_rate": 5e-2}))
    assert metrics.test.accuracy is not None
    assert metrics.test.accuracy >= 0.75
    assert metrics.test.hierarchy is not None
    assert metrics.test.hierarchy.coarse_accuracy >= 0.75
    assert metrics.test.hierarchy.agreement >= 0.75


def test_the_checkpoint_card_has_kind_hierarchy_and_sizes(whole: Whole) -> None:
    config = configured(whole.tree)
    checkpoint = load_checkpoint(whole.out)
    card = checkpoint.card
    assert (card.kind, card.classes, card.model) == ("hmil", ("normal", "adenoma", "low", "high"), config.model)
    assert card.hierarchy is not None
    assert (card.hierarchy.coarse, card.hierarchy.fine_to_coarse) == (("benign", "malignant"), (0, 0, 1, 1))
    assert [(stage.name, stage.spacing_um, stage.keep) for stage in card.stages] == [("only", 0.5, None)]
    (model,) = build_models(checkpoint)
    assert isinstance(model, HierarchicalMil)
    output = model(torch.zeros(3, card.feature_dim))
    assert (output.coarse_logits.shape, output.fine_attention.shape) == ((2,), (4, 3))
    assert whole.metrics.classes == card.classes


def test_the_last_step_of_an_epoch_takes_the_remaining_slides(tree: dict[str, Any]) -> None:
    seen: list[TrainingProgress] = []
    train(configured(tree, schedule={"max_epochs": 1, "batch_size": 3}), progress=seen.append)
    assert [state.done for state in seen if state.phase == "train"] == [3, 6, 8]


@pytest.mark.parametrize(
    "dies_at", [("train", 1, 6), ("train", 2, 8), ("validation", 2, 2), ("train", 4, 3), ("train", 3, 3)]
)
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    whole: Whole, tmp_path: Path, dies_at: tuple[str, int, int]
) -> None:
    broken = configured(whole.tree, out=str(tmp_path / "broken"), schedule=SCHEDULE)
    with pytest.raises(Killed):
        train(broken, progress=_at(dies_at, _die))
    assert train(broken, resume=True) == whole.metrics
    for checkpoint in (BEST, LAST):
        assert _equal(broken.out / checkpoint, whole.out / checkpoint)
    assert _state(broken.out) == _state(whole.out)
    assert _state(whole.out).plateau.reductions >= 2


@pytest.mark.parametrize("stops_at", [("train", 1, 3), ("train", 3, 6), ("validation", 3, 4)])
def test_a_run_stopped_by_a_signal_and_resumed_ends_with_the_same_weights(
    whole: Whole, tmp_path: Path, stops_at: tuple[str, int, int]
) -> None:
    broken = configured(whole.tree, out=str(tmp_path / "broken"), schedule=SCHEDULE)
    with pytest.raises(Interrupted):
        train(broken, progress=_at(stops_at, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    train(broken, resume=True)
    assert _equal(broken.out / LAST, whole.out / LAST)


def test_a_plateau_with_a_tiny_factor_freezes_the_weights(tree: dict[str, Any]) -> None:
    plateau = {"patience": 0, "threshold": 0.999, "factor": 1e-12}
    ends = []
    for epochs in (1, 2, 4):
        schedule = {"max_epochs": epochs, "batch_size": 3, "plateau": plateau}
        loss = {"contrastive": 0.0, "curriculum": False}  # no other loss depends on the number of epochs
        config = configured(tree, out=str(Path(tree["out"]) / str(epochs)), schedule=schedule, loss=loss)
        train(config)
        ends.append(load_checkpoint(config.out / LAST).card.weights_sha256)
    assert ends[0] != ends[1] == ends[2]


@pytest.mark.parametrize("name", ["coarse", "fine", "bag_alignment", "instance_alignment", "contrastive"])
def test_every_loss_changes_the_weights_and_can_be_disabled(
    whole: Whole, default_run: TrainingConfig, tmp_path: Path, name: str
) -> None:
    without = configured(whole.tree, out=str(tmp_path / "without"), loss={name: 0.0})
    train(without)
    assert not _equal(default_run.out / LAST, without.out / LAST)


def test_the_number_of_epochs_cannot_change_on_resume(whole: Whole, default_run: TrainingConfig) -> None:
    changed = configured(whole.tree, out=str(default_run.out), schedule={"max_epochs": 4, "batch_size": 3})
    with pytest.raises(UsageError, match=r"schedule\.max_epochs"):
        train(changed, resume=True)


def test_features_with_several_stages_need_a_selected_stage(tmp_path: Path) -> None:
    tree = write_hierarchy_cohort(tmp_path, parts=PARTS, stages=STAGES)
    with pytest.raises(UsageError, match=r"one spacing.*stages low, high.*data\.stages=\[high\]"):
        train(configured(tree))
    assert not (tmp_path / "run" / "config.yaml").exists()
    config = configured(tree, data={**tree["data"], "stages": ["low"]})
    train(config)
    assert [stage.name for stage in load_checkpoint(config.out).card.stages] == ["low"]
    with pytest.raises(DataError, match="no stage middle; they have low, high"):
        train(configured(tree, out=str(tmp_path / "two"), data={**tree["data"], "stages": ["middle"]}))


def test_an_unknown_label_is_an_error_before_training(tree: dict[str, Any]) -> None:
    labels = Path(tree["data"]["labels"])
    text = labels.read_text()
    labels.write_text(text.replace("low", "mid"))
    with pytest.raises(DataError, match='not a class: "mid"; the classes are normal, adenoma, low, high'):
        train(configured(tree))
    labels.write_text(text.replace("low", "malignant"))
    with pytest.raises(DataError, match=r'"malignant".*the fine class'):
        train(configured(tree))
    assert not Path(tree["out"], "config.yaml").exists()


def test_a_class_without_a_training_slide_is_an_error_before_training(tree: dict[str, Any]) -> None:
    labels = Path(tree["data"]["labels"])
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(line.replace("high", "low") if "train" in line else line for line in lines) + "\n")
    with pytest.raises(DataError, match='for training of class "high"'):
        train(configured(tree))
    assert not Path(tree["out"], "config.yaml").exists()


def test_features_that_are_not_finite_name_the_slide(tree: dict[str, Any]) -> None:
    folder = Path(tree["data"]["features"])
    write_slide(folder, "train-5", 1, patches=2, stages=[("only", 0.5)], value=float("nan"))
    with pytest.raises(DataError, match='slide "train-5": the features contain values'):
        train(configured(tree))


def test_a_diverged_training_is_an_error(tree: dict[str, Any]) -> None:
    config = configured(tree)
    optimiser = config.optimiser.model_copy(update={"learning_rate": 1e30})  # more than a configuration may have
    with pytest.raises(UsageError, match=r"diverged; lower optimiser\.learning_rate"):
        train(config.model_copy(update={"optimiser": optimiser}))


def _at(moment: tuple[str, int, int], act: Any) -> Any:
    def watch(state: TrainingProgress) -> None:
        if (state.phase, state.epoch, state.done) == moment:
            act()

    return watch


def _die() -> None:
    raise Killed


def _state(out: Path) -> TrainingState:
    return TrainingState.model_validate_json(read_training_state(out / LAST))


def _equal(one: Path, other: Path) -> bool:
    a, b = load_file(one / WEIGHTS_NAME), load_file(other / WEIGHTS_NAME)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
