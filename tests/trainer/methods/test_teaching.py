"""Teaching: the targets of coarser stages, and the steps towards them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hagmil.trainer.methods.hag_mil import HagMil
from hagmil.trainer.methods.teaching import teaching_targets
from tests.trainer.cohorts import THREE_STAGES, hag_mil_and_bag, write_cohort
from tests.trainer.hierarchy_cohorts import cascade_with_hierarchy, write_hierarchy_cohort


def _weights(method: HagMil) -> list[list[Tensor]]:
    return [[weight.detach().clone() for weight in model.parameters()] for model in method.models]


def _equal(one: list[list[Tensor]], other: list[list[Tensor]]) -> list[bool]:
    """For each stage, whether all weights are equal."""
    return [all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)]


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return write_cohort(tmp_path, parts={"train": 6, "val": 2, "test": 0}, stages=THREE_STAGES)


def test_the_target_of_a_kept_patch_is_the_attention_of_its_descendants() -> None:
    scores = np.random.default_rng(1).standard_normal(12)
    mass = np.exp(scores) / np.exp(scores).sum()
    # Three stages of factor 2. Of 3 coarse patches, 2 and 0 are kept; the middle bag has the children of 2, then of 0.
    kept = [torch.tensor([2, 0]), torch.tensor([5, 1, 6])]
    coarse, middle = teaching_targets(torch.from_numpy(scores), kept, [3, 8])
    by_child = [mass[:4].sum(), mass[4:8].sum(), mass[8:].sum()]
    np.testing.assert_allclose(middle.numpy(), by_child)
    np.testing.assert_allclose(coarse.numpy(), [by_child[1], by_child[0] + by_child[2]])


def test_a_kept_patch_without_kept_descendants_has_the_target_zero() -> None:
    kept = [torch.tensor([1, 0]), torch.tensor([3])]
    coarse, middle = teaching_targets(torch.zeros(4), kept, [2, 8])
    assert coarse.tolist() == [1.0, 0.0]
    assert middle.tolist() == [1.0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_teaching_moves_the_attention_of_coarser_stages_towards_the_target(
    tree: dict[str, Any], precision: str
) -> None:
    method, bag = hag_mil_and_bag(
        tree,
        precision=precision,
        loss={"bag_weight": 0.0, "instance_weight": 0.0},
        optimiser={"learning_rate": 1e-2, "weight_decay": 0.0},
        cascade={"keep_train": 100, "teach": 1.0, "teach_from": 1},
        checkpoint_blocks_above=0,
    )
    before = _weights(method)
    losses = np.array([method.train_slide(bag, epoch=0) for _ in range(6)])
    assert method.loss_names == ("low_teaching", "middle_teaching", "low", "middle", "high")
    assert (losses[-1, :2] < losses[0, :2]).all()
    assert _equal(_weights(method), before) == [False, False, True]


def test_teaching_begins_with_its_first_epoch_and_takes_one_more_step(tree: dict[str, Any]) -> None:
    found = {}
    for teach, epoch in ((0.0, 2), (0.3, 1), (0.3, 2)):
        method, bag = hag_mil_and_bag(tree, cascade={"keep_train": 3, "teach": teach, "teach_from": 3})
        losses = method.train_slide(bag, epoch=epoch)
        assert [value > 0 for value in losses[:-3]] == ([epoch == 2] * 2 if teach else [])
        steps = [optimiser.state_dict()["state"][0]["step"].item() for optimiser in method.optimisers]
        assert steps == ([2, 2, 1] if (teach, epoch) == (0.3, 2) else [1, 1, 1])
        found[teach, epoch] = _weights(method)
    assert _equal(found[0.0, 2], found[0.3, 1]) == [True, True, True]
    assert _equal(found[0.0, 2], found[0.3, 2]) == [False, False, True]


def test_a_cascade_with_a_hierarchy_and_a_single_stage_can_be_taught(tmp_path: Path) -> None:
    cascade = {"keep_train": 4, "keep_random": True, "teach": 0.3, "teach_from": 1}
    for name, stages in (("hierarchy", THREE_STAGES), ("single", THREE_STAGES[-1:])):
        parts = {"train": 6, "val": 2, "test": 0}
        if name == "hierarchy":
            written = write_hierarchy_cohort(tmp_path / name, parts=parts, stages=stages)
            tree = cascade_with_hierarchy(written)
        else:
            tree = write_cohort(tmp_path / name, parts=parts, stages=stages)
        method, bag = hag_mil_and_bag(tree, cascade=cascade)
        assert len(method.train_slide(bag, epoch=0)) == 2 * len(stages) - 1 == len(method.loss_names)
