"""Lower the learning rate when the validation loss stops falling, as torch's ReduceLROnPlateau does.

The schedule is arithmetic on a state that is saved with the training, so that a resumed run continues exactly.
"""

from __future__ import annotations

from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.spec import Count
from hagmil.trainer.config.sections import PlateauConfig


class PlateauState(FrozenModel):
    """Immutable state of the plateau schedule."""

    best_loss: float | None = Field(default=None, description="null before the first epoch")
    bad_epochs: Count = Field(default=0, description="epochs without a lower loss since the best one or a reduction")
    reductions: Count = Field(default=0, description="number of times that the learning rate was lowered")

    def after_epoch(self, loss: float | None, config: PlateauConfig) -> PlateauState:
        """The state after one more epoch.

        Args:
            loss: validation loss of the epoch; None counts as not lower.
            config: the schedule.
        """
        better = loss is not None and (self.best_loss is None or loss < self.best_loss * (1 - config.threshold))
        if better:
            return self.model_copy(update={"best_loss": loss, "bad_epochs": 0})
        if self.bad_epochs + 1 <= config.patience:
            return self.model_copy(update={"bad_epochs": self.bad_epochs + 1})
        return self.model_copy(update={"bad_epochs": 0, "reductions": self.reductions + 1})

    def learning_rate(self, initial: float, config: PlateauConfig) -> float:
        """The learning rate of the next epoch, from that of the first epoch."""
        return float(initial * config.factor**self.reductions)
