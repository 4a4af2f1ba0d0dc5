"""HAG-MIL with a hierarchy of labels: coarse classes at the coarse stages, fine classes at the finest stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hagmil.errors import UsageError
from hagmil.trainer.checkpoints.checkpoint import LAST, build_models, load_checkpoint
from hagmil.trainer.training.loop import train
from hagmil.trainer.training.progress import TrainingProgress
from tests.trainer.cohorts import STAGES, THREE_STAGES, configured, write_cohort
from tests.trainer.hierarchy_cohorts import HIERARCHY, cascade_with_hierarchy, write_hierarchy_cohort

PARTS = {"train": 8, "val": 4, "test": 4}


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return cascade_with_hierarchy(write_hierarchy_cohort(tmp_path, parts=PARTS, stages=THREE_STAGES))


def test_all_stages_but_the_finest_have_the_coarse_classes(tree: dict[str, Any]) -> None:
    config = configured(tree)
    train(config)
    checkpoint = load_checkpoint(config.out)
    assert checkpoint.card.kind == "hag-mil"
    assert checkpoint.card.hierarchy is not None
    assert checkpoint.card.classes == tuple(HIERARCHY["fine"])
    bag = torch.zeros(3, checkpoint.card.feature_dim)
    assert [len(model(bag).logits) for model in build_models(checkpoint)] == [2, 2, 4]


def test_training_learns_both_layers_of_labels(tmp_path: Path) -> None:
    parts = {"train": 16, "val": 8, "test": 8}
    tree = cascade_with_hierarchy(write_hierarchy_cohort(tmp_path, parts=parts, stages=STAGES))
    metrics = train(configured(tree, schedule={"max_epochs": 12}, optimiser={"learning_rate": 2e-2}))
    assert metrics.test.accuracy is not None
    assert metrics.test.accuracy >= 0.75
    assert metrics.test.hierarchy is not None
    assert metrics.test.hierarchy.coarse_accuracy >= 0.75


@pytest.mark.parametrize("name", ["bag", "instance"])
def test_each_alignment_loss_changes_only_the_weights_of_its_stages(tree: dict[str, Any], name: str) -> None:
    out = Path(tree["out"])
    weights = []
    for value in (0.0, 1.0):
        alignment = {"bag": 0.0, "instance": 0.0, name: value}
        config = configured(tree, out=str(out / str(value)), alignment=alignment, schedule={"max_epochs": 1})
        train(config)
        weights.append([model.state_dict() for model in build_models(load_checkpoint(config.out / LAST))])
    same = [all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(*weights, strict=True)]
    assert same == ([True, True, False] if name == "bag" else [True, False, False])


def test_a_killed_and_resumed_run_ends_with_the_same_weights(tree: dict[str, Any]) -> None:
    def die(state: TrainingProgress) -> None:
        if (state.phase, state.epoch, state.done) == ("train", 2, 5):
            raise KeyError

    whole, broken = (configured(tree, out=str(Path(tree["out"]) / name)) for name in ("whole", "broken"))
    expected = train(whole)
    with pytest.raises(KeyError):
        train(broken, progress=die)
    assert train(broken, resume=True) == expected
    assert (
        load_checkpoint(broken.out / LAST).card.weights_sha256 == load_checkpoint(whole.out / LAST).card.weights_sha256
    )


def test_a_single_stage_with_a_hierarchy_is_an_error(tmp_path: Path) -> None:
    tree = cascade_with_hierarchy(write_hierarchy_cohort(tmp_path, parts=PARTS))
    with pytest.raises(UsageError, match=r"needs a coarse stage.*kind: hmil"):
        train(configured(tree))


def test_a_hierarchy_and_a_list_of_classes_are_mutually_exclusive(tree: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the hierarchy names the classes; remove classes"):
        configured(tree, classes=HIERARCHY["fine"])


def test_alignment_without_a_hierarchy_changes_nothing(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path)
    digests = []
    for value in (0.0, 5.0):
        config = configured(tree, out=str(tmp_path / str(value)), alignment={"bag": value, "instance": value})
        train(config)
        digests.append(load_checkpoint(config.out / LAST).card.weights_sha256)
    assert digests[0] == digests[1]
