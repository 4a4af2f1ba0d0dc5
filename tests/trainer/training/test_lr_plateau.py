"""The plateau schedule equals ReduceLROnPlateau of torch and has a state that can be saved."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hagmil.trainer.config.sections import PlateauConfig
from hagmil.trainer.training.lr_plateau import PlateauState

LOSSES = [1.0, 0.9, 0.9, 0.8999999, 0.95, 0.7, 0.8, 0.8, 0.8, 0.71, 0.8, 0.6999, 0.75, 0.75, 0.75, 0.75, 0.75, 0.6]


@pytest.mark.parametrize("patience", [0, 1, 2, 5])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.1])
def test_the_learning_rate_equals_that_of_torch(patience: int, threshold: float) -> None:
    config = PlateauConfig(factor=0.5, patience=patience, threshold=threshold)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = ReduceLROnPlateau(optimiser, factor=0.5, patience=patience, threshold=threshold, eps=0)
    state = PlateauState()
    for loss in LOSSES:
        reference.step(loss)
        state = PlateauState.model_validate_json(state.model_dump_json()).after_epoch(loss, config)
        assert state.learning_rate(0.1, config) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
    assert state.reductions >= (0 if patience == 5 else 1)


def test_the_published_schedule_divides_by_ten_after_six_epochs_without_a_better_loss() -> None:
    config, state = PlateauConfig(), PlateauState().after_epoch(1.0, PlateauConfig())
    rates = []
    for _ in range(7):
        state = state.after_epoch(1.0, config)
        rates.append(state.learning_rate(1e-4, config))
    assert rates == pytest.approx([1e-4] * 5 + [1e-5] * 2)


def test_an_epoch_without_a_loss_does_not_count_as_better() -> None:
    state = PlateauState(best_loss=0.5).after_epoch(None, PlateauConfig())
    assert (state.best_loss, state.bad_epochs) == (0.5, 1)
