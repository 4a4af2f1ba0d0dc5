"""HAG-MIL's way with one slide (Xiong et al. 2023, section 3.3): stage after stage, coarse to fine.

1. A stage's bag: all patches of the slide at the coarsest stage, then the children of kept patches only.
2. Training: the stage's losses, and a step of the stage's own optimiser.
3. The patches of highest attention are kept, their children are the next bag.
4. The verdict is the finest stage's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from hagmil.errors import DataError, UsageError
from hagmil.trainer.cascade import child_rows, keep_highest
from hagmil.trainer.cohort import Bag, CohortStage
from hagmil.trainer.config import HagMilConfig
from hagmil.trainer.losses import bag_loss, instance_loss
from hagmil.trainer.models.iat import IntegratedAttentionTransformer, TrainingOutput


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the models say of a slide.

    Args:
        probabilities: float64 (classes,), the finest stage's.
        stage_losses: each stage's cross entropy without smoothing, coarse to fine; the last is the verdict's.
    """

    probabilities: tuple[float, ...]
    stage_losses: tuple[float, ...]


class HagMil:
    """The models of all stages, and one optimiser each.

    Args:
        config: the training's configuration.
        stages: coarse to fine.
        feature_dim: length of a feature vector.
        classes: number of classes.
    """

    def __init__(self, config: HagMilConfig, stages: tuple[CohortStage, ...], feature_dim: int, classes: int) -> None:
        self.config = config
        self.stages = stages
        self.device = torch.device(config.device)
        self.models = [
            IntegratedAttentionTransformer(feature_dim, classes, config.model).to(self.device) for _ in stages
        ]
        settings = config.optimiser
        self.optimisers = [
            Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
            for model in self.models
        ]

    def train_slide(self, bag: Bag) -> tuple[float, ...]:
        """Train every stage on one slide.

        Args:
            bag: the slide's features and label.

        Returns:
            Each stage's loss, coarse to fine.

        Raises:
            DataError: the features hold values that are not finite.
            UsageError: a loss is not finite although the features are; the training has diverged.
        """
        losses: list[float] = []
        rows: Tensor | None = None
        for index, (model, optimiser) in enumerate(zip(self.models, self.optimisers, strict=True)):
            model.train()
            output = model.forward_training(self._bag(bag, index, rows))  # step 1
            loss = self._loss(model, output, bag.label, index)
            losses.append(loss.item())
            self._check_finite(losses[-1], bag, index)
            optimiser.zero_grad(set_to_none=True)  # step 2
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rows = self._next_rows(output.attention.detach(), rows, index, self.config.cascade.keep_train)
        return tuple(losses)

    @torch.inference_mode()
    def classify_slide(self, bag: Bag) -> Verdict:
        """Run the cascade on one slide as deployment does.

        Args:
            bag: the slide's features; its label is used for the losses alone.

        Raises:
            DataError: the features hold values that are not finite.
            UsageError: a loss is not finite although the features are.
        """
        losses: list[float] = []
        probabilities: tuple[float, ...] = ()
        rows: Tensor | None = None
        for index, model in enumerate(self.models):
            model.eval()
            logits, attention = model(self._bag(bag, index, rows))
            losses.append(bag_loss(logits, bag.label).item())
            self._check_finite(losses[-1], bag, index)
            probabilities = tuple(torch.softmax(logits.double(), dim=0).tolist())  # step 4: the last one stays
            rows = self._next_rows(attention, rows, index, self.config.cascade.keep_validation)
        return Verdict(probabilities, tuple(losses))

    def _bag(self, bag: Bag, index: int, rows: Tensor | None) -> Tensor:
        """Step 1: float32 (patches, feature_dim); always a fresh copy, aligned alike, for the same bits."""
        features = bag.features[index]
        chosen = features if rows is None else features[rows]
        return chosen.to(self.device, torch.float32, copy=True)

    def _loss(self, model: IntegratedAttentionTransformer, output: TrainingOutput, label: int, index: int) -> Tensor:
        settings = self.config.loss
        finest = index == len(self.stages) - 1
        bag = bag_loss(output.logits, label, label_smoothing=0.0 if finest else settings.label_smoothing)
        instance = instance_loss(
            output.attention,
            output.hidden,
            list(model.instance_classifiers),
            label,
            kind=settings.instance,
            k_sample=settings.k_sample,
            subtyping=settings.subtyping,
        )
        return settings.bag_weight * bag + settings.instance_weight * instance

    def _next_rows(self, attention: Tensor, rows: Tensor | None, index: int, keep: int) -> Tensor | None:
        """Step 3: rows of the next stage's full table, on the CPU; None after the finest."""
        factor = self.stages[index].factor
        if factor is None:
            return None
        kept = keep_highest(attention.cpu(), keep)
        return child_rows(kept if rows is None else rows[kept], factor)

    def _check_finite(self, loss: float, bag: Bag, index: int) -> None:
        if loss == loss and abs(loss) != float("inf"):
            return
        where = f'slide "{bag.slide_id}", stage {self.stages[index].name}'
        if not torch.isfinite(bag.features[index]).all():
            raise DataError(f"{where}: the features hold values that are not finite; extract it again")
        raise UsageError(
            f"{where}: the loss is {loss}, though the features are finite: the training has diverged; "
            "lower optimiser.learning_rate",
            code="diverged",
        )
