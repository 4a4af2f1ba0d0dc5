"""The protocol between the training loop and a method: models, optimisers, training step and classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hagmil.errors import DataError, UsageError
from hagmil.trainer.data.cohort import Bag


@dataclass(frozen=True, slots=True)
class SlideScore:
    """The probabilities and losses of one slide.

    Args:
        probabilities: float64 (classes,); with a hierarchy, of the fine classes.
        losses: cross entropies without label smoothing, named by the method's ``validation_loss_names``; the last one
            is that of the verdict.
        coarse_probabilities: float64 (coarse,), from the coarse logits; None without a hierarchy.
    """

    probabilities: tuple[float, ...]
    losses: tuple[float, ...]
    coarse_probabilities: tuple[float, ...] | None = None


class Method(Protocol):
    """HAG-MIL or HMIL, as the training loop uses it."""

    @property
    def models(self) -> Sequence[nn.Module]:
        """One model for each stage, coarse to fine."""
        ...

    @property
    def optimisers(self) -> Sequence[Optimizer]:
        """One optimiser for each model."""
        ...

    @property
    def batch_size(self) -> int:
        """Slides in one training step."""
        ...

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the training losses; the last is the one that progress reports."""
        ...

    @property
    def validation_loss_names(self) -> tuple[str, ...]:
        """Names of the losses of a :class:`SlideScore`."""
        ...

    def train_bags(self, bags: Sequence[Bag], *, epoch: int) -> tuple[float, ...]:
        """Take one training step on a batch of slides.

        Args:
            bags: features and labels of at most ``batch_size`` slides.
            epoch: number of finished epochs.

        Returns:
            The losses, named by ``loss_names``.

        Raises:
            DataError: the features contain values that are not finite.
            UsageError: a loss is not finite although the features are; the training has diverged.
        """
        ...

    def classify_slide(self, bag: Bag) -> SlideScore:
        """Classify one slide as in deployment; its label is used for the losses only."""
        ...


def check_finite(loss: float, features: Sequence[Tensor], where: str) -> None:
    """Raise an error that names the cause if a loss is not finite.

    Args:
        loss: the loss.
        features: the features that it was computed from.
        where: slide and stage, for the error message.

    Raises:
        DataError: the features contain values that are not finite.
        UsageError: the loss is not finite although the features are.
    """
    if loss == loss and abs(loss) != float("inf"):
        return
    if not all(bool(torch.isfinite(rows).all()) for rows in features):
        raise DataError(f"{where}: the features contain values that are not finite; extract the slide again")
    raise UsageError(
        f"{where}: the loss is {loss} although the features are finite: the training has diverged; "
        "lower optimiser.learning_rate",
        code="diverged",
    )


def set_learning_rate(optimisers: Sequence[Optimizer], learning_rate: float) -> None:
    """Set the learning rate of all optimisers."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
