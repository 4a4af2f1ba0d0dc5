"""Progress reports of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hagmil.trainer.metrics.classification import ClassificationMetrics

Phase = Literal["train", "validation", "test", "kept patches"]


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The progress of a training, reported after every training step and every evaluated slide.

    Args:
        phase: the current phase.
        epoch: the current epoch, from 1; the best epoch in the final evaluation.
        max_epochs: maximum number of epochs.
        done: number of finished slides of this phase.
        total: number of slides of this phase.
        loss: mean training loss of this epoch so far (finest stage of HAG-MIL, total of HMIL); None outside training.
        last_validation: metrics of the last finished epoch.
        best_epoch: the epoch with the lowest validation loss so far.
    """

    phase: Phase
    epoch: int
    max_epochs: int
    done: int
    total: int
    loss: float | None
    last_validation: ClassificationMetrics | None
    best_epoch: int | None


ProgressCallback = Callable[[TrainingProgress], None]
