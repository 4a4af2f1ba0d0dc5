"""What the training loop asks of a method: models, optimisers, and its way with slides."""

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
    """What the models say of a slide.

    Args:
        probabilities: float64 (classes,); with a hierarchy those of the fine classes.
        losses: cross entropies without smoothing, named by the method's ``validation_loss_names``; the last is the
            verdict's.
        coarse_probabilities: float64 (coarse,), of the coarse classes' own logits; None without a hierarchy.
    """

    probabilities: tuple[float, ...]
    losses: tuple[float, ...]
    coarse_probabilities: tuple[float, ...] | None = None


class Method(Protocol):
    """HAG-MIL or HMIL, as the loop sees them."""

    @property
    def models(self) -> Sequence[nn.Module]:
        """A model a stage, coarse to fine."""
        ...

    @property
    def optimisers(self) -> Sequence[Optimizer]:
        """One for each model."""
        ...

    @property
    def batch_size(self) -> int:
        """Slides a step."""
        ...

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the training losses; the last is the one to watch."""
        ...

    @property
    def validation_loss_names(self) -> tuple[str, ...]:
        """Names of a verdict's losses."""
        ...

    def train_bags(self, bags: Sequence[Bag], *, epoch: int) -> tuple[float, ...]:
        """One step on a batch of slides.

        Args:
            bags: features and labels of at most ``batch_size`` slides.
            epoch: epochs done.

        Returns:
            The losses, named by ``loss_names``.

        Raises:
            DataError: the features hold values that are not finite.
            UsageError: a loss is not finite although the features are; the training has diverged.
        """
        ...

    def classify_slide(self, bag: Bag) -> SlideScore:
        """Take one slide through the models as deployment does; its label is used for the losses alone."""
        ...


def check_finite(loss: float, features: Sequence[Tensor], where: str) -> None:
    """See that a loss is a number, and blame who is to blame.

    Args:
        loss: the loss.
        features: what it was computed from.
        where: slide and stage, for the message.

    Raises:
        DataError: the features hold values that are not finite.
        UsageError: the loss is not finite although the features are.
    """
    if loss == loss and abs(loss) != float("inf"):
        return
    if not all(bool(torch.isfinite(rows).all()) for rows in features):
        raise DataError(f"{where}: the features hold values that are not finite; extract it again")
    raise UsageError(
        f"{where}: the loss is {loss}, though the features are finite: the training has diverged; "
        "lower optimiser.learning_rate",
        code="diverged",
    )


def set_learning_rate(optimisers: Sequence[Optimizer], learning_rate: float) -> None:
    """Give all optimisers a learning rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
