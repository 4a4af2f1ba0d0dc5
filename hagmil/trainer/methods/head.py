"""Training and classification with a head other than HAG-MIL and HMIL: one model at one spacing, one slide at a time.

1. Run the model on the bag; its loss (:mod:`hagmil.trainer.losses.registry`) gets what the model gives in training.
2. Take an optimiser step with the mean gradient of all processes.
3. The logits give the verdict; cross entropy is the validation loss of every head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

from hagmil.errors import UsageError
from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.compute.mixed_precision import autocast, in_float32
from hagmil.trainer.config.training import HeadTrainingConfig
from hagmil.trainer.data.cohort import Bag, CohortStage
from hagmil.trainer.losses.registry import find_loss
from hagmil.trainer.methods.base import SlideScore, check_finite
from hagmil.trainer.models.registry import ModelSizes, model_kind


class HeadMethod:
    """A head: one model and its optimiser.

    Args:
        config: configuration of the training.
        stages: stages of the features; there must be exactly one.
        feature_dim: length of a feature vector.
        classes: number of classes.
        group: the processes that train together.

    Raises:
        UsageError: the features have more than one stage, or the head or the loss is unknown.
    """

    batch_size = 1
    validation_loss_names = ("cross_entropy",)

    def __init__(
        self,
        config: HeadTrainingConfig,
        stages: tuple[CohortStage, ...],
        feature_dim: int,
        classes: int,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if len(stages) != 1:
            names = ", ".join(stage.name for stage in stages)
            raise UsageError(
                f"kind {config.kind} uses one spacing, but these features have stages {names}; choose one with "
                f"data.stages=[{stages[-1].name}]"
            )
        self.config = config
        self.group = group
        self.device = torch.device(config.device)
        self.loss_names = (config.loss_name,)
        self._loss = find_loss(config.loss_name)
        (built,) = model_kind(config.kind).build(config.model, ModelSizes(feature_dim, classes))
        self.model = built.to(self.device)
        self.models = [self.model]
        settings = config.optimiser
        self.optimisers = [Adam(self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)]

    def train_bags(self, bags: Sequence[Bag], *, epoch: int) -> tuple[float, ...]:  # noqa: ARG002
        """Take one training step on one slide; see :class:`~hagmil.trainer.methods.base.Method`."""
        (bag,) = bags
        self.model.train()
        with autocast(self.config.precision, self.device):
            output = in_float32(self._forward_training(self._rows(bag)))
        loss = self._loss.compute(output, bag.label, self.model, self.config.loss)  # step 1
        value = loss.item()
        check_finite(value, bag.features, f'slide "{bag.slide_id}"')
        (optimiser,) = self.optimisers
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.group.average_gradients(self.model)
        optimiser.step()  # step 2
        return (value,)

    @torch.inference_mode()
    def classify_slide(self, bag: Bag) -> SlideScore:
        """Classify one slide; see :class:`~hagmil.trainer.methods.base.Method`."""
        logits = self.model.eval()(self._rows(bag))[0]
        loss = F.cross_entropy(logits, torch.tensor(bag.label, device=logits.device)).item()
        check_finite(loss, bag.features, f'slide "{bag.slide_id}"')
        return SlideScore(tuple(torch.softmax(logits.double(), dim=0).tolist()), (loss,))  # step 3

    def _forward_training(self, features: Tensor) -> Any:
        forward = getattr(self.model, "forward_training", self.model)
        return forward(features)

    def _rows(self, bag: Bag) -> Tensor:
        """float32 (patches, feature_dim); always a new copy, whose alignment gives the same bits every time."""
        return bag.features[0].to(self.device, torch.float32, copy=True)
