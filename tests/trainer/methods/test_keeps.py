"""Random numbers of kept patches in training, and several numbers in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hagmil.trainer.methods import hag_mil
from hagmil.trainer.methods.selection import keep_highest, random_keep
from tests.trainer.cohorts import THREE_STAGES, hag_mil_and_bag, write_cohort


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return write_cohort(tmp_path, parts={"train": 6, "val": 2, "test": 0}, stages=THREE_STAGES)


@pytest.mark.parametrize("patches", [1, 2, 300])
def test_the_random_number_of_kept_patches_is_n_to_a_uniform_power(patches: int) -> None:
    torch.manual_seed(4)
    uniform = torch.rand(1000, dtype=torch.float64).numpy()
    torch.manual_seed(4)
    drawn = [random_keep(patches) for _ in range(1000)]
    assert drawn == np.rint(patches**uniform).tolist()
    assert min(drawn) == 1
    assert 0.98 * patches <= max(drawn) <= patches


def test_each_stage_of_a_step_keeps_a_random_number_and_the_finest_draws_none(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def spy(attention: torch.Tensor, keep: int) -> torch.Tensor:
        seen.append((len(attention), keep))
        return keep_highest(attention, keep)

    monkeypatch.setattr(hag_mil, "keep_highest", spy)
    method, bag = hag_mil_and_bag(tree, cascade={"keep_train": 4, "keep_random": True})
    torch.manual_seed(1)
    uniform = [torch.rand((), dtype=torch.float64).item() for _ in range(3)]
    torch.manual_seed(1)
    method.train_slide(bag)
    assert torch.rand((), dtype=torch.float64).item() == uniform[2]
    low, middle = (round(6 ** uniform[0]), round((4 * round(6 ** uniform[0])) ** uniform[1]))
    assert seen == [(6, low), (4 * low, middle)]


def test_without_random_keep_no_number_is_drawn(tree: dict[str, Any]) -> None:
    method, bag = hag_mil_and_bag(tree, cascade={"keep_train": 4, "teach": 0.3, "teach_from": 1})
    torch.manual_seed(1)
    method.train_slide(bag)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(()), after)


def test_the_validation_loss_is_the_mean_over_the_numbers_of_kept_patches(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_keep = {}
    for keep in (1, 3, 1000):
        method, bag = hag_mil_and_bag(tree, cascade={"keep_validation": keep})
        by_keep[keep] = method.classify_slide(bag)
    method, bag = hag_mil_and_bag(tree, cascade={"keep_validation": 3, "validation_keeps": [1, 3, "all"]})
    calls = [0, 0, 0]
    for index, model in enumerate(method.models):

        def forward(features: torch.Tensor, index: int = index, run: Any = model.forward) -> Any:
            calls[index] += 1
            return run(features)

        monkeypatch.setattr(model, "forward", forward)
    score = method.classify_slide(bag)
    assert score.probabilities == by_keep[3].probabilities
    assert score.losses[:-1] == by_keep[3].losses
    assert score.losses[-1] == pytest.approx(np.mean([by_keep[keep].losses[-1] for keep in (1, 3, 1000)]), rel=1e-6)
    assert len({one.losses[-1] for one in by_keep.values()}) == 3
    assert method.validation_loss_names == ("low", "middle", "high", "validation_keeps")
    assert calls == [1, 4, 4]
