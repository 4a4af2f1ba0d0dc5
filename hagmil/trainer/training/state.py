"""The state of a training that, together with weights and optimisers, allows an exact resume."""

from __future__ import annotations

from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.spec import Count, PositiveCount
from hagmil.trainer.config.sections import ScheduleConfig
from hagmil.trainer.metrics.classification import ClassificationMetrics
from hagmil.trainer.training.lr_plateau import PlateauState


class TrainingState(FrozenModel):
    """Immutable state of a training.

    It has no random state: the order of slides and dropout follow from seed, epoch and position.
    """

    labels_sha256: str
    split_sha256: str
    features_sha256: str
    epoch: Count = Field(default=0, description="number of finished epochs")
    position: Count = Field(default=0, description="finished slides of the current epoch, over all processes")
    processes: PositiveCount = Field(default=1, description="number of processes; the same when the run is resumed")
    loss_sums: tuple[float, ...] = Field(
        default=(), description="sum of each loss over the finished slides of the epoch"
    )
    validation: ClassificationMetrics | None = Field(default=None, description="metrics of the last finished epoch")
    best_loss: float | None = None
    best_epoch: Count | None = None
    stale_epochs: Count = Field(default=0, description="epochs since the best epoch")
    plateau: PlateauState = PlateauState()

    def after_step(self, losses: tuple[float, ...], *, slides: int) -> TrainingState:
        """The state after one more step of the current epoch.

        Args:
            losses: mean of each loss over the slides of the step.
            slides: number of slides of the step.
        """
        sums = self.loss_sums or (0.0,) * len(losses)
        added = tuple(total + loss * slides for total, loss in zip(sums, losses, strict=True))
        return self.model_copy(update={"position": self.position + slides, "loss_sums": added})

    def after_epoch(self, validation: ClassificationMetrics, schedule: ScheduleConfig) -> TrainingState:
        """The state after the current epoch and its validation."""
        loss = validation.loss
        improved = loss is not None and (self.best_loss is None or loss < self.best_loss)
        epoch = self.epoch + 1
        update = {"epoch": epoch, "position": 0, "loss_sums": (), "validation": validation}
        if improved:
            update |= {"best_loss": loss, "best_epoch": epoch, "stale_epochs": 0}
        else:
            update |= {"stale_epochs": self.stale_epochs + 1}
        if schedule.plateau is not None:
            update |= {"plateau": self.plateau.after_epoch(loss, schedule.plateau)}
        return self.model_copy(update=update)

    def mean_losses(self) -> tuple[float, ...]:
        """Mean of each training loss over the finished slides of the current epoch."""
        return tuple(total / self.position for total in self.loss_sums)

    def learning_rate(self, initial: float, schedule: ScheduleConfig) -> float:
        """The learning rate of the current epoch, from that of the first epoch."""
        return initial if schedule.plateau is None else self.plateau.learning_rate(initial, schedule.plateau)

    def improved(self) -> bool:
        """Whether the last finished epoch is the best."""
        return self.epoch > 0 and self.best_epoch == self.epoch

    def is_finished(self, schedule: ScheduleConfig) -> bool:
        """Whether the training has ended, by the number of epochs or by early stopping."""
        return self.epoch >= schedule.max_epochs or self.stopped_early(schedule)

    def stopped_early(self, schedule: ScheduleConfig) -> bool:
        """Whether validation has not improved for ``patience`` epochs."""
        return schedule.patience is not None and self.stale_epochs >= schedule.patience
