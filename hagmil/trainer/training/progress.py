"""What a training tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hagmil.trainer.metrics.classification import ClassificationMetrics

Phase = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a training is; handed to the progress callback after every step of training and
    every slide of evaluation.

    Args:
        phase: what is being done.
        epoch: the current epoch, from 1; in the evaluation at the end the best one.
        max_epochs: epochs at most.
        done: slides of this phase done.
        total: slides of this phase.
        loss: mean so far in this epoch of the training loss to watch (HAG-MIL's finest stage's, HMIL's total); None
            outside training.
        last_validation: of the last epoch done.
        best_epoch: the epoch of lowest validation loss so far.
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
