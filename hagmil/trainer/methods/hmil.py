"""HMIL's way with a batch of slides (Jin et al., IEEE TMI 2025, section III): one spacing, two layers of
labels.

1. Every bag of the batch goes through the one model by itself; bags differ in their number of patches.
2. The outputs side by side give the five losses, weighted by the curriculum, and one step. Where several processes
   train together, each has a batch of its own, and the step is on their mean gradient.
3. The verdict is the fine classes'; the coarse classes have one of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

from hagmil.errors import UsageError
from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.compute.mixed_precision import autocast, in_float32
from hagmil.trainer.config.training import HmilTrainingConfig
from hagmil.trainer.data.cohort import Bag, CohortStage
from hagmil.trainer.losses.hmil import HmilLosses, batch_bags, hmil_losses
from hagmil.trainer.methods.base import SlideScore, check_finite
from hagmil.trainer.models.build import hmil_model


class Hmil:
    """The model and its optimiser.

    Args:
        config: the training's configuration.
        stages: of the features; there must be one.
        feature_dim: length of a feature vector.
        group: the processes that train together.

    Raises:
        UsageError: the features have more than one stage.
    """

    loss_names = (*HmilLosses._fields[1:], HmilLosses._fields[0])
    validation_loss_names = ("coarse", "fine")

    def __init__(
        self,
        config: HmilTrainingConfig,
        stages: tuple[CohortStage, ...],
        feature_dim: int,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if len(stages) != 1:
            names = ", ".join(stage.name for stage in stages)
            raise UsageError(
                f"HMIL works at one spacing; these features have stages {names}: choose one with "
                f"data.stages=[{stages[-1].name}]"
            )
        self.config = config
        self.group = group
        self.hierarchy = config.label_hierarchy()
        self.device = torch.device(config.device)
        self.batch_size = config.schedule.batch_size
        self.model = hmil_model(config.model, feature_dim=feature_dim, hierarchy=self.hierarchy).to(self.device)
        self.models = [self.model]
        settings = config.optimiser
        self.optimisers = [Adam(self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)]

    def train_bags(self, bags: Sequence[Bag], *, epoch: int) -> tuple[float, ...]:
        """One step on a batch of slides; see :class:`~hagmil.trainer.methods.base.Method`."""
        self.model.train()
        with autocast(self.config.precision, self.device):
            outputs = [in_float32(self.model.forward_training(self._rows(bag))) for bag in bags]  # step 1
        losses = hmil_losses(  # step 2
            batch_bags(outputs),
            torch.tensor([bag.label for bag in bags], device=self.device),
            self.hierarchy.fine_to_coarse,
            epoch=epoch,
            epochs=self.config.schedule.max_epochs,
            config=self.config.loss,
        )
        found = tuple(getattr(losses, name).item() for name in self.loss_names)
        self._check_finite(found[-1], bags)
        (optimiser,) = self.optimisers
        optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.group.average_gradients(self.model)
        optimiser.step()
        return found

    @torch.inference_mode()
    def classify_slide(self, bag: Bag) -> SlideScore:
        """Take one slide through the model; see :class:`~hagmil.trainer.methods.base.Method`."""
        self.model.eval()
        output = self.model(self._rows(bag))
        coarse_label = self.hierarchy.fine_to_coarse[bag.label]
        losses = (_cross_entropy(output.coarse_logits, coarse_label), _cross_entropy(output.fine_logits, bag.label))
        self._check_finite(losses[-1], [bag])
        return SlideScore(_probabilities(output.fine_logits), losses, _probabilities(output.coarse_logits))  # step 3

    def _rows(self, bag: Bag) -> Tensor:
        """float32 (patches, feature_dim); always a fresh copy, aligned alike, for the same bits."""
        return bag.features[0].to(self.device, torch.float32, copy=True)

    def _check_finite(self, loss: float, bags: Sequence[Bag]) -> None:
        for bag in bags:  # the first that is to blame; where none is, all together
            if not bool(torch.isfinite(bag.features[0]).all()):
                check_finite(loss, bag.features, f'slide "{bag.slide_id}"')
        check_finite(loss, (), f'slides "{bags[0].slide_id}" to "{bags[-1].slide_id}"')


def _cross_entropy(logits: Tensor, label: int) -> float:
    return F.cross_entropy(logits, torch.tensor(label, device=logits.device)).item()


def _probabilities(logits: Tensor) -> tuple[float, ...]:
    return tuple(torch.softmax(logits.double(), dim=0).tolist())
