"""Training and classification with HMIL (Jin et al., IEEE TMI 2025, section III): one spacing, two layers of labels.

1. Run the model on each bag of the batch separately, since bags differ in their number of patches.
2. Compute the five losses of the batch, weighted by the curriculum, and take one optimiser step. If several processes
   train together, each has its own batch, and the step uses the mean gradient.
3. The fine logits give the verdict; the coarse logits give the coarse probabilities.
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
    """HMIL: one model and its optimiser.

    Args:
        config: configuration of the training.
        stages: stages of the features; there must be exactly one.
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
                f"HMIL uses one spacing, but these features have stages {names}; choose one with "
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
        """Take one training step on a batch of slides; see :class:`~hagmil.trainer.methods.base.Method`."""
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
        """Classify one slide; see :class:`~hagmil.trainer.methods.base.Method`."""
        self.model.eval()
        output = self.model(self._rows(bag))
        coarse_label = self.hierarchy.fine_to_coarse[bag.label]
        losses = (_cross_entropy(output.coarse_logits, coarse_label), _cross_entropy(output.fine_logits, bag.label))
        self._check_finite(losses[-1], [bag])
        return SlideScore(_probabilities(output.fine_logits), losses, _probabilities(output.coarse_logits))  # step 3

    def _rows(self, bag: Bag) -> Tensor:
        """float32 (patches, feature_dim); always a new copy, whose alignment gives the same bits every time."""
        return bag.features[0].to(self.device, torch.float32, copy=True)

    def _check_finite(self, loss: float, bags: Sequence[Bag]) -> None:
        for bag in bags:  # name the first slide with such features, else the whole batch
            if not bool(torch.isfinite(bag.features[0]).all()):
                check_finite(loss, bag.features, f'slide "{bag.slide_id}"')
        check_finite(loss, (), f'slides "{bags[0].slide_id}" to "{bags[-1].slide_id}"')


def _cross_entropy(logits: Tensor, label: int) -> float:
    return F.cross_entropy(logits, torch.tensor(label, device=logits.device)).item()


def _probabilities(logits: Tensor) -> tuple[float, ...]:
    return tuple(torch.softmax(logits.double(), dim=0).tolist())
