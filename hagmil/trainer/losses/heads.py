"""Losses of heads: cross entropy, CLAM's with its instance loss, and DSMIL's over both of its streams.

A loss gets what the model gives in training for one bag, the label, the model and the section ``loss`` of the
configuration.
"""

from __future__ import annotations

from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hagmil._models import FrozenModel
from hagmil.errors import UsageError
from hagmil.spec import PatchCount
from hagmil.trainer.losses.instance import InstanceLossKind, bag_loss, instance_loss
from hagmil.trainer.models.limits import Dropout, LossWeight


class HeadOutput(Protocol):
    """What a head gives for a bag; models give more for losses that need it."""

    @property
    def logits(self) -> Tensor:
        """Logits, float (classes,)."""
        ...

    @property
    def attention(self) -> Tensor:
        """Attention, float (patches,) or (classes, patches)."""
        ...


class CrossEntropyConfig(FrozenModel):
    """Cross entropy of the logits."""

    label_smoothing: Dropout = Field(default=0.0, description="share of the target given to all classes")


class ClamLossConfig(FrozenModel):
    """Cross entropy and CLAM's instance loss, with the weights of the published code."""

    bag_weight: LossWeight = Field(default=0.7, description="weight of the cross entropy of the slide")
    instance_weight: LossWeight = Field(default=0.3, description="weight of the clustering loss of patches")
    instance: InstanceLossKind = Field(
        default="svm", description="instance loss: cross_entropy, svm (smooth top-1) or none"
    )
    k_sample: PatchCount = Field(default=8, description="patches with the highest, and with the lowest attention")
    subtyping: bool = Field(default=False, description="true if classes exclude one another and none means normal")


class DsmilLossConfig(FrozenModel):
    """Binary cross entropies of DSMIL's two streams, with the weights of the published code."""

    bag_weight: float = Field(default=0.5, ge=0, description="weight of the bag stream")
    max_weight: float = Field(default=0.5, ge=0, description="weight of the highest logit of the instance stream")


def cross_entropy_loss(output: HeadOutput, label: int, _model: nn.Module, config: CrossEntropyConfig) -> Tensor:
    """Cross entropy of one bag."""
    return bag_loss(output.logits, label, label_smoothing=config.label_smoothing)


def clam_loss(output: HeadOutput, label: int, model: nn.Module, config: ClamLossConfig) -> Tensor:
    """Loss of CLAM for one bag.

    Raises:
        UsageError: the model has no instance classifiers.
    """
    hidden, classifiers = getattr(output, "hidden", None), list(getattr(model, "instance_classifiers", ()))
    if hidden is None or not classifiers:
        raise UsageError("loss clam needs a kind with instance classifiers, such as clam-sb", code="configuration")
    instance = instance_loss(
        output.attention,
        hidden,
        classifiers,
        label,
        kind=config.instance,
        k_sample=config.k_sample,
        subtyping=config.subtyping,
    )
    return config.bag_weight * bag_loss(output.logits, label) + config.instance_weight * instance


def dsmil_loss(output: HeadOutput, label: int, _model: nn.Module, config: DsmilLossConfig) -> Tensor:
    """Loss of DSMIL for one bag: mean over classes of the binary cross entropies of both streams.

    Raises:
        UsageError: the model does not have both streams.
    """
    bag_logits, max_logits = getattr(output, "bag_logits", None), getattr(output, "max_logits", None)
    if bag_logits is None or max_logits is None:
        raise UsageError("loss dsmil needs a kind with a bag and an instance stream: dsmil", code="configuration")
    present = len(bag_logits)  # without the negative class, which comes first
    target = F.one_hot(torch.tensor(label, device=bag_logits.device), len(output.logits))[-present:].float()
    bag = F.binary_cross_entropy_with_logits(bag_logits, target)
    return config.bag_weight * bag + config.max_weight * F.binary_cross_entropy_with_logits(max_logits, target)
