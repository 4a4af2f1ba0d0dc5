"""The five losses of HMIL and their curriculum (Jin et al., IEEE TMI 2025, section III).

At epoch t of T, with a = 1 - (t/T)², the total of a batch of bags is

    a·coarse + fine + bag alignment + instance alignment + (1 - a)·contrastive

1. Coarse and fine: cross entropy of the logits.
2. Bag alignment: cross entropy against the coarse label, with the fine probabilities summed into coarse classes in
   place of logits, as in the published code.
3. Instance alignment: 1 - cosine, over classes, between the coarse attention of a patch and its fine attention summed
   into coarse classes; the mean over patches and then over bags.
4. Contrastive: supervised contrastive loss (Khosla et al. 2020, equation 2) on the fine class embeddings, which are the
   views of a bag. The positives of a view are all other views of bags with the same fine label. The loss is scaled by
   tau/0.1 and divided by the number of bags.
5. The temperature tau falls from 1 to 0.1 and rises back to 1, in one cosine wave over the training.

Each loss also has a weight from the configuration; a loss with weight 0 is not computed. The published training loop
computes the instance alignment loss but does not add it; this implementation adds it, as the paper does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from hagmil._models import FrozenModel, Within
from hagmil.trainer.losses.hierarchy import bag_alignment_loss, membership
from hagmil.trainer.models.hmil import HmilTrainingOutput
from hagmil.trainer.models.limits import LossWeight

BASE_TEMPERATURE = 0.1
"""Reference temperature of the contrastive loss, independent of the lowest temperature of the schedule."""


def _weight(loss: str) -> float:
    weight: float = Field(default=1.0, description=f"weight of the {loss}; 0: off")
    return weight


class HmilLossConfig(FrozenModel):
    """Weights of the losses and range of the temperature; the defaults are those of the paper."""

    coarse: LossWeight = _weight("cross entropy of the coarse label, which the curriculum multiplies by a")
    fine: LossWeight = _weight("cross entropy of the fine label")
    bag_alignment: LossWeight = _weight(
        "alignment of fine probabilities, summed into coarse classes, with the coarse label"
    )
    instance_alignment: LossWeight = _weight("alignment of fine and coarse attention")
    contrastive: LossWeight = _weight(
        "contrastive loss of the fine class embeddings, which the curriculum multiplies by 1 - a"
    )
    curriculum: bool = Field(default=True, description="weigh by a = 1 - (t/T)² and 1 - a; false: both are 1")
    lowest_temperature: Annotated[float, Within(0.001, 1000)] = Field(
        default=0.1, description="temperature of the contrastive loss half way through"
    )
    highest_temperature: Annotated[float, Within(0.001, 1000)] = Field(
        default=1.0, description="temperature of the contrastive loss at start and end"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> HmilLossConfig:
        if not (self.coarse or self.fine or self.bag_alignment):
            raise ValueError(
                "at least one of coarse, fine and bag_alignment must be above 0: no other loss uses the logits"
            )
        if self.lowest_temperature > self.highest_temperature:
            raise ValueError("lowest_temperature must not be above highest_temperature")
        return self


class LossWeights(NamedTuple):
    """Factor of each loss at one epoch, in the order of :class:`HmilLosses`."""

    coarse: float
    fine: float
    bag_alignment: float
    instance_alignment: float
    contrastive: float


class HmilLosses(NamedTuple):
    """The losses of a batch, each an unweighted scalar; a loss with weight 0 is 0."""

    total: Tensor
    coarse: Tensor
    fine: Tensor
    bag_alignment: Tensor
    instance_alignment: Tensor
    contrastive: Tensor


class BagBatch(NamedTuple):
    """The model outputs of a batch of bags.

    Args:
        coarse_logits: float (bags, coarse).
        fine_logits: float (bags, fine).
        coarse_attention: float (coarse, patches) for each bag.
        fine_attention: float (fine, patches) for each bag.
        fine_embeddings: float (bags, fine, fine_width), each of length 1.
    """

    coarse_logits: Tensor
    fine_logits: Tensor
    coarse_attention: tuple[Tensor, ...]
    fine_attention: tuple[Tensor, ...]
    fine_embeddings: Tensor


def batch_bags(outputs: Sequence[HmilTrainingOutput]) -> BagBatch:
    """Collect the outputs of one or more bags, which may differ in their number of patches."""
    return BagBatch(
        torch.stack([output.coarse_logits for output in outputs]),
        torch.stack([output.fine_logits for output in outputs]),
        tuple(output.coarse_attention for output in outputs),
        tuple(output.fine_attention for output in outputs),
        torch.stack([output.fine_embedding for output in outputs]),
    )


def instance_alignment_loss(
    coarse_attention: Sequence[Tensor], fine_attention: Sequence[Tensor], members: Tensor
) -> Tensor:
    """Mean cosine distance between the coarse and the fine attention of each patch, over classes (step 3).

    Args:
        coarse_attention: float (coarse, patches) for each bag.
        fine_attention: float (fine, patches) for each bag.
        members: float (coarse, fine), from :func:`membership`.

    Returns:
        float scalar, from 0 (same directions) to 1.
    """
    similarities = [
        F.cosine_similarity(coarse, members @ fine, dim=0).mean()  # (coarse, n) -> (n,) -> ()
        for coarse, fine in zip(coarse_attention, fine_attention, strict=True)
    ]
    return 1 - torch.stack(similarities).mean()


def contrastive_loss(fine_embeddings: Tensor, fine_labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss of fine class embeddings, divided by the number of bags (step 4).

    Args:
        fine_embeddings: float (bags, fine, fine_width), each of length 1; at least two fine classes.
        fine_labels: int64 (bags,).
        temperature: tau, above 0.

    Returns:
        float scalar.
    """
    bags, views, _ = fine_embeddings.shape
    rows = fine_embeddings.flatten(0, 1)  # (bags, fine, width) -> (bags·fine, width)
    labels = fine_labels.repeat_interleave(views)  # (bags,) -> (bags·fine,)
    itself = torch.eye(bags * views, dtype=torch.bool, device=rows.device)
    similarity = (rows @ rows.mT / temperature).masked_fill(itself, -torch.inf)
    log_probability = torch.log_softmax(similarity, dim=1).masked_fill(itself, 0.0)
    positives = (labels[:, None] == labels[None, :]) & ~itself
    per_view = -(log_probability * positives).sum(dim=1) / positives.sum(dim=1)
    return per_view.mean() * (temperature / BASE_TEMPERATURE) / bags


def curriculum_share(epoch: int, epochs: int) -> float:
    """a = 1 - (t/T)², the curriculum factor of the coarse loss at epoch ``epoch`` (from 0) of ``epochs``."""
    return float(1 - (epoch / epochs) ** 2)


def temperature_at(epoch: int, epochs: int, config: HmilLossConfig | None = None) -> float:
    """Temperature of the contrastive loss at epoch ``epoch`` (from 0) of ``epochs`` (step 5)."""
    config = config or HmilLossConfig()
    wave = (1 + math.cos(2 * math.pi * epoch / epochs)) / 2
    return config.lowest_temperature + (config.highest_temperature - config.lowest_temperature) * wave


def loss_weights(epoch: int, epochs: int, config: HmilLossConfig | None = None) -> LossWeights:
    """Factor of each loss at epoch ``epoch`` (from 0) of ``epochs``: its weight times its curriculum factor."""
    config = config or HmilLossConfig()
    share = curriculum_share(epoch, epochs)
    coarse_share, contrastive_share = (share, 1 - share) if config.curriculum else (1.0, 1.0)
    return LossWeights(
        coarse=config.coarse * coarse_share,
        fine=config.fine,
        bag_alignment=config.bag_alignment,
        instance_alignment=config.instance_alignment,
        contrastive=config.contrastive * contrastive_share,
    )


def hmil_losses(
    batch: BagBatch,
    fine_labels: Tensor,
    fine_to_coarse: Sequence[int],
    *,
    epoch: int,
    epochs: int,
    config: HmilLossConfig | None = None,
) -> HmilLosses:
    """Compute all losses of a batch of bags and their weighted total.

    Args:
        batch: outputs of at least one bag.
        fine_labels: int64 (bags,).
        fine_to_coarse: index of the coarse class of each fine class.
        epoch: t, from 0.
        epochs: T.
        config: weights and temperatures; those of the paper by default.

    Returns:
        The total and each unweighted loss.
    """
    config = config or HmilLossConfig()
    logits = batch.coarse_logits
    members = membership(fine_to_coarse, logits.shape[1]).to(logits.device, logits.dtype)
    coarse_labels = torch.tensor(fine_to_coarse, device=fine_labels.device)[fine_labels]
    temperature = temperature_at(epoch, epochs, config)
    off = logits.new_zeros(())
    losses = (
        F.cross_entropy(logits, coarse_labels) if config.coarse else off,
        F.cross_entropy(batch.fine_logits, fine_labels) if config.fine else off,
        bag_alignment_loss(batch.fine_logits, coarse_labels, members) if config.bag_alignment else off,
        instance_alignment_loss(batch.coarse_attention, batch.fine_attention, members)
        if config.instance_alignment
        else off,
        contrastive_loss(batch.fine_embeddings, fine_labels, temperature) if config.contrastive else off,
    )
    weights = loss_weights(epoch, epochs, config)
    total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
    return HmilLosses(total, *losses)
