"""Heads other than HAG-MIL and HMIL train in the same loop, and their checkpoints load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hagmil.errors import UsageError
from hagmil.trainer.checkpoints.checkpoint import build_models, load_checkpoint
from hagmil.trainer.config.explained import explained_yaml
from hagmil.trainer.config.training import load_config
from hagmil.trainer.training.loop import train
from tests.trainer.cohorts import configured, write_cohort
from tests.trainer.head_checkpoints import SMALL


def head_tree(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """A cohort of one stage and the configuration of a head on it."""
    tree = write_cohort(folder, stages=(("only", 0.5),))
    wanted = {key: tree[key] for key in ("out", "data", "classes", "threads")}
    return {**wanted, "kind": kind, "model": SMALL.get(kind, {}), "schedule": {"max_epochs": 1}, **changes}


@pytest.mark.parametrize("kind", SMALL)
def test_a_head_trains_and_its_checkpoint_loads(kind: str, tmp_path: Path) -> None:
    config = configured(head_tree(tmp_path, kind, optimiser={"learning_rate": 1e-2}))
    metrics = train(config)
    assert metrics.test.slides == 2
    checkpoint = load_checkpoint(config.out)
    assert (checkpoint.card.kind, checkpoint.card.model) == (kind, config.model)
    (model,) = build_models(checkpoint)
    for patches in (1, 5):
        logits, attention = model(torch.randn(patches, checkpoint.card.feature_dim))
        assert logits.shape == (2,)
        assert attention.shape == ((2, patches) if checkpoint.card.attention == "per_class" else (patches,))


def test_a_head_takes_another_loss_by_its_name(tmp_path: Path) -> None:
    config = configured(head_tree(tmp_path, "clam-sb", loss={"name": "cross_entropy", "label_smoothing": 0.1}))
    assert config.loss.model_dump() == {"label_smoothing": 0.1, "name": "cross_entropy"}
    assert train(config).epochs == 1


def test_the_configuration_of_a_head_is_explained_and_loads_back(tmp_path: Path) -> None:
    config = configured(head_tree(tmp_path, "clam-mb"))
    text = explained_yaml(config)
    assert "# name of the loss: cross_entropy or clam or dsmil" in text
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "clam"},
            "kind is 'clam'; it must be one of hag-mil, hmil, mean, max, abmil, clam-sb",
        ),
        ({"loss": {"name": "focal"}}, 'no loss "focal"; it must be one of cross_entropy, clam, dsmil'),
        ({"loss": {"k_samples": 4}}, 'unknown key "loss.k_samples"; did you mean "loss.k_sample"?'),
        ({"hierarchy": None}, 'unknown key "hierarchy"'),
    ],
)
def test_a_wrong_configuration_of_a_head_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        configured({**head_tree(tmp_path, "clam-sb"), **changes})
    assert message in raised.value.message


def test_a_head_refuses_features_of_several_stages(tmp_path: Path) -> None:
    tree = head_tree(tmp_path, "abmil")
    tree["data"] = write_cohort(tmp_path / "two")["data"]
    with pytest.raises(UsageError, match=r"kind abmil uses one spacing, .* data\.stages=\[high\]"):
        train(configured(tree))


def test_the_loss_of_clam_needs_instance_classifiers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loss clam needs a kind with instance classifiers"):
        train(configured(head_tree(tmp_path, "abmil", loss={"name": "clam"})))
