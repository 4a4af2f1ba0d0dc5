"""A learning rate that is lowered where the validation loss no longer falls, as torch's ReduceLROnPlateau does.

Written as arithmetic on a state that is saved with the training, so that a resumed run goes on exactly.
"""

from __future__ import annotations

from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.trainer.config.sections import PlateauConfig


class PlateauState(FrozenModel):
    """How long the validation loss has not fallen; every epoch makes a new one."""

    best_loss: float | None = Field(default=None, description="null before the first epoch")
    bad_epochs: int = Field(default=0, description="epochs without a better loss since the best or the last reduction")
    reductions: int = Field(default=0, description="how often the learning rate was lowered")

    def after_epoch(self, loss: float | None, config: PlateauConfig) -> PlateauState:
        """The state after one more epoch.

        Args:
            loss: its validation loss; None counts as no better one.
            config: the schedule.
        """
        better = loss is not None and (self.best_loss is None or loss < self.best_loss * (1 - config.threshold))
        if better:
            return self.model_copy(update={"best_loss": loss, "bad_epochs": 0})
        if self.bad_epochs + 1 <= config.patience:
            return self.model_copy(update={"bad_epochs": self.bad_epochs + 1})
        return self.model_copy(update={"bad_epochs": 0, "reductions": self.reductions + 1})

    def learning_rate(self, initial: float, config: PlateauConfig) -> float:
        """The learning rate of the next epoch, given that of the first."""
        return float(initial * config.factor**self.reductions)
