"""Training and classification with HAG-MIL (Xiong et al. 2023, section 3.3), one slide at a time, coarse to fine.

1. The bag of the coarsest stage has all patches of the slide, the bags of the others the children of kept patches.
2. Compute the losses of the stage, and take a step of its optimiser with the mean gradient of all processes.
3. Keep the patches with the highest attention; their children are the bag of the next stage.
4. The finest stage gives the verdict.
5. With ``cascade.teach`` (an addition of this package, docs/training.md), every coarser stage then takes one more step,
   towards the attention of the finest stage.

With a hierarchy of labels (an addition of this package, docs/hierarchy.md), the finest stage is trained on the fine
label and all other stages on the coarse label, and the losses of :mod:`hagmil.trainer.losses.alignment` are added.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam

from hagmil.errors import UsageError
from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.compute.mixed_precision import autocast, in_float32
from hagmil.trainer.config.training import HagMilConfig
from hagmil.trainer.data.cohort import Bag, CohortStage
from hagmil.trainer.losses.alignment import stage_alignment_loss, verdict_alignment_loss
from hagmil.trainer.losses.hierarchy import membership
from hagmil.trainer.losses.instance import bag_loss, instance_loss
from hagmil.trainer.losses.teaching import teaching_loss
from hagmil.trainer.methods.base import SlideScore, check_finite
from hagmil.trainer.methods.selection import child_rows, keep_highest, random_keep
from hagmil.trainer.methods.teaching import teaching_targets
from hagmil.trainer.models.build import CascadeModel, cascade_models
from hagmil.trainer.models.iat import TrainingOutput


class _Classified(NamedTuple):
    logits: Tensor  # (classes,)
    attention: Tensor  # (patches,)
    loss: float


class HagMil:
    """HAG-MIL: a model and an optimiser for each stage.

    Args:
        config: configuration of the training.
        stages: coarse to fine.
        feature_dim: length of a feature vector.
        classes: number of classes; with a hierarchy, of fine classes.
        group: the processes that train together.

    Raises:
        UsageError: there is a hierarchy but no coarse stage for its coarse classes.
    """

    batch_size = 1

    def __init__(
        self,
        config: HagMilConfig,
        stages: tuple[CohortStage, ...],
        feature_dim: int,
        classes: int,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.config = config
        self.group = group
        self.stages = stages
        self.device = torch.device(config.device)
        self.hierarchy = hierarchy = config.label_hierarchy()
        if hierarchy is not None and len(stages) < 2:
            raise UsageError(
                f"a cascade with a hierarchy needs a coarse stage, but the only stage is {stages[0].name}; "
                "use features of more stages, or kind: hmil"
            )
        self._members = (
            None if hierarchy is None else membership(hierarchy.fine_to_coarse, len(hierarchy.coarse)).to(self.device)
        )
        built = cascade_models(
            config.model, feature_dim=feature_dim, classes=classes, hierarchy=hierarchy, stages=len(stages)
        )
        self.models = [model.to(self.device) for model in built]
        settings = config.optimiser
        self.optimisers = [
            Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
            for model in self.models
        ]
        names = tuple(stage.name for stage in stages)
        self._teaches = bool(config.cascade.teach) and len(stages) > 1
        self.loss_names = (*(f"{name}_teaching" for name in names[:-1]), *names) if self._teaches else names
        self.validation_loss_names = names if config.cascade.validation_keeps is None else (*names, "validation_keeps")

    def train_bags(self, bags: Sequence[Bag], *, epoch: int) -> tuple[float, ...]:
        """Train every stage on one slide; see :class:`~hagmil.trainer.methods.base.Method`."""
        (bag,) = bags
        return self.train_slide(bag, epoch=epoch)

    def train_slide(self, bag: Bag, *, epoch: int = 0) -> tuple[float, ...]:
        """Train every stage on one slide.

        Args:
            bag: features and label of the slide.
            epoch: number of finished epochs.

        Returns:
            The losses, named by ``loss_names``: with teaching, first the teaching loss of each coarser stage (0 before
            the epoch ``cascade.teach_from``); then the loss of each stage, coarse to fine.

        Raises:
            DataError: the features contain values that are not finite.
            UsageError: a loss is not finite although the features are; the training has diverged.
        """
        losses: list[float] = []
        rows: list[Tensor | None] = [None]
        kept: list[Tensor] = []
        attention: list[Tensor] = []
        for index, model in enumerate(self.models):
            model.train()
            output = self._forward(model, self._bag(bag, index, rows[index]))  # step 1
            loss = self._loss(model, output, bag.label, index)
            if self._members is not None:
                parents = attention[-1][kept[-1].to(self.device)] if kept else None
                loss = loss + self._alignment(output, parents, bag.label, index)
            losses.append(self._step(loss, bag, index))  # step 2
            attention.append(output.attention.detach())
            if self.stages[index].factor is not None:
                kept.append(keep_highest(attention[-1].cpu(), self._keep_in_training(len(attention[-1]))))  # step 3
                rows.append(self._next_rows(kept[-1], rows[index], index))
        if not self._teaches:
            return tuple(losses)
        taught = [0.0] * len(kept)
        if epoch + 1 >= self.config.cascade.teach_from:
            targets = teaching_targets(attention[-1], kept, [len(scores) for scores in attention[:-1]])
            taught = [self._teach(bag, index, rows[index], kept[index], target) for index, target in enumerate(targets)]
        return (*taught, *losses)

    @torch.inference_mode()
    def classify_slide(self, bag: Bag) -> SlideScore:
        """Run the cascade on one slide as in deployment.

        Args:
            bag: features and label of the slide; the label is used for the losses only.

        Raises:
            DataError: the features contain values that are not finite.
            UsageError: a loss is not finite although the features are.
        """
        cascade = self.config.cascade
        coarsest = self._classify(bag, 0, None)
        found = self._cascade(bag, coarsest, cascade.keep_validation)
        losses = [loss for _, _, loss in found]
        if cascade.validation_keeps is not None:
            keeps = [len(bag.features[-1]) if keep == "all" else keep for keep in cascade.validation_keeps]
            losses.append(statistics.fmean(self._cascade(bag, coarsest, keep)[-1].loss for keep in keeps))
        probabilities = [tuple(torch.softmax(logits.double(), dim=0).tolist()) for logits, _, _ in found]
        coarse = probabilities[-2] if self.hierarchy is not None else None
        return SlideScore(probabilities[-1], tuple(losses), coarse)  # step 4

    def _classify(self, bag: Bag, index: int, rows: Tensor | None) -> _Classified:
        """Run the model of one stage as in deployment."""
        model = self.models[index].eval()
        logits, attention = model(self._bag(bag, index, rows))[:2]
        loss = bag_loss(logits, self._stage_label(bag.label, index)).item()
        self._check_finite(loss, bag, index)
        return _Classified(logits, attention, loss)

    def _cascade(self, bag: Bag, coarsest: _Classified, keep: int) -> list[_Classified]:
        """The outputs of all stages as in deployment, from those of the coarsest stage, which do not depend on K."""
        found = [coarsest]
        rows: Tensor | None = None
        for index in range(1, len(self.stages)):
            kept = keep_highest(found[-1].attention.cpu(), keep)
            rows = self._next_rows(kept, rows, index - 1)
            found.append(self._classify(bag, index, rows))
        return found

    def _step(self, loss: Tensor, bag: Bag, index: int) -> float:
        """Take an optimiser step of a stage with the mean gradient of all processes; return the loss."""
        value = loss.item()
        self._check_finite(value, bag, index)
        model, optimiser = self.models[index], self.optimisers[index]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.group.average_gradients(model)
        optimiser.step()
        return value

    def _teach(self, bag: Bag, index: int, rows: Tensor | None, kept: Tensor, target: Tensor) -> float:
        """Step 5 for one stage, with the bag and the kept patches of its first step; return the weighted loss."""
        output = self._forward(self.models[index], self._bag(bag, index, rows))
        loss = teaching_loss(target, output.attention[kept.to(self.device)])
        return self._step(self.config.cascade.teach * loss, bag, index)

    def _keep_in_training(self, patches: int) -> int:
        """K of one stage in one step; draws a random number only with ``keep_random``."""
        cascade = self.config.cascade
        return random_keep(patches) if cascade.keep_random else cascade.keep_train

    def _bag(self, bag: Bag, index: int, rows: Tensor | None) -> Tensor:
        """Step 1: float32 (patches, feature_dim); always a new copy, whose alignment gives the same bits every time."""
        features = bag.features[index]
        chosen = features if rows is None else features[rows]
        return chosen.to(self.device, torch.float32, copy=True)

    def _forward(self, model: CascadeModel, features: Tensor) -> TrainingOutput:
        """Run the forward pass of a training step; the outputs are float32."""
        above = self.config.checkpoint_blocks_above
        checkpoint_blocks = above is not None and len(features) > above
        with autocast(self.config.precision, self.device):
            return in_float32(model.forward_training(features, checkpoint_blocks=checkpoint_blocks))

    def _stage_label(self, label: int, index: int) -> int:
        """The label that a stage is trained on: with a hierarchy, the coarse label at all stages but the finest."""
        coarse = self.hierarchy is not None and index < len(self.stages) - 1
        return self.hierarchy.fine_to_coarse[label] if self.hierarchy is not None and coarse else label

    def _loss(self, model: CascadeModel, output: TrainingOutput, label: int, index: int) -> Tensor:
        settings = self.config.loss
        finest = index == len(self.stages) - 1
        stage_label = self._stage_label(label, index)
        bag = bag_loss(output.logits, stage_label, label_smoothing=0.0 if finest else settings.label_smoothing)
        instance = instance_loss(
            output.attention,
            output.hidden,
            list(model.instance_classifiers),
            stage_label,
            kind=settings.instance,
            k_sample=settings.k_sample,
            subtyping=settings.subtyping,
        )
        return settings.bag_weight * bag + settings.instance_weight * instance

    def _alignment(self, output: TrainingOutput, parents: Tensor | None, label: int, index: int) -> Tensor:
        """The alignment losses; ``parents`` is the attention of the patches that the next coarser stage kept."""
        weights = self.config.alignment
        loss = output.logits.new_zeros(())
        if parents is not None and weights.instance:
            loss = loss + weights.instance * stage_alignment_loss(parents, output.attention)
        if index == len(self.stages) - 1 and weights.bag and self._members is not None:
            coarse_label = self._stage_label(label, 0)
            loss = loss + weights.bag * verdict_alignment_loss(output.logits, coarse_label, self._members)
        return loss

    def _next_rows(self, kept: Tensor, rows: Tensor | None, index: int) -> Tensor:
        """Step 3: the children of kept patches, as rows of the next stage's full feature table, on the CPU.

        Args:
            kept: int64 (kept,), rows of the bag of this stage.
            rows: int64 (patches,), rows of the bag in the full feature table of this stage; None: all of them.
            index: number of this stage, which is not the finest.
        """
        factor = self.stages[index].factor
        assert factor is not None
        return child_rows(kept if rows is None else rows[kept], factor)

    def _check_finite(self, loss: float, bag: Bag, index: int) -> None:
        where = f'slide "{bag.slide_id}", stage {self.stages[index].name}'
        check_finite(loss, [bag.features[index]], where)
