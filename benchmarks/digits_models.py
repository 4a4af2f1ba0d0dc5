"""The models of the digits benchmark: those of this package, and two simple ones for comparison.

Each is a :class:`DigitsModel`: a network, the interpretation of its outputs, and its loss. All process bags of one size
in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits_bags import COARSE, FEATURES, FINE, FINE_TO_COARSE
from hagmil.trainer.losses.hierarchy import membership
from hagmil.trainer.losses.hmil import BagBatch, HmilLossConfig, hmil_losses
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

_WIDTH, _GATES = 64, 32
_MEMBERS = membership(FINE_TO_COARSE, len(COARSE))


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Outputs of a model for a batch of bags.

    Args:
        fine_logits: (bags, fine).
        coarse: (bags, coarse), probabilities.
        rest: further outputs for the loss.
    """

    fine_logits: Tensor
    coarse: Tensor
    rest: Any = None


@dataclass(frozen=True, slots=True)
class DigitsModel:
    """A kind of model, one row of the table.

    Args:
        name: name in the table.
        make: makes a network with random weights from torch's generator.
        predict: runs the network on features (bags, images, 64).
        loss: loss of the outputs for fine labels (bags,) at an epoch, given the number of epochs.
    """

    name: str
    make: Callable[[], nn.Module]
    predict: Callable[[nn.Module, Tensor], ModelOutput]
    loss: Callable[[ModelOutput, Tensor, int, int], Tensor] = field(
        default=lambda output, labels, _epoch, _epochs: F.cross_entropy(output.fine_logits, labels)
    )


class MeanPooling(nn.Module):
    """One layer for each instance, the mean over the bag, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(FEATURES, _WIDTH), nn.ReLU())
        self.classify = nn.Linear(_WIDTH, len(FINE))

    def forward(self, bags: Tensor) -> Tensor:
        """Return fine logits (bags, fine) of features (bags, images, 64)."""
        return self.classify(self.encode(bags).mean(dim=1))  # type: ignore[no-any-return]


class AttentionPooling(nn.Module):
    """The same with gated attention (Ilse et al. 2018, section 2.4) instead of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(FEATURES, _WIDTH), nn.ReLU())
        self.signal, self.gate = nn.Linear(_WIDTH, _GATES), nn.Linear(_WIDTH, _GATES)
        self.score = nn.Linear(_GATES, 1)
        self.classify = nn.Linear(_WIDTH, len(FINE))

    def forward(self, bags: Tensor) -> Tensor:
        """Return fine logits (bags, fine) of features (bags, images, 64)."""
        rows = self.encode(bags)
        scores = self.score(torch.tanh(self.signal(rows)) * torch.sigmoid(self.gate(rows)))  # (bags, images, 1)
        return self.classify((torch.softmax(scores, dim=1) * rows).sum(dim=1))  # type: ignore[no-any-return]


def digits_models() -> tuple[DigitsModel, ...]:
    """Return the models in the order of the table."""
    return (
        DigitsModel("mean pooling", MeanPooling, _flat),
        DigitsModel("attention MIL", AttentionPooling, _flat),
        DigitsModel("HAG-MIL transformer", _transformer, _predict_transformer),
        _hmil("HMIL", HmilLossConfig()),
        _hmil("HMIL without alignment", HmilLossConfig(bag_alignment=0, instance_alignment=0)),
        _hmil("HMIL without contrastive", HmilLossConfig(contrastive=0)),
        _hmil("HMIL without either", HmilLossConfig(bag_alignment=0, instance_alignment=0, contrastive=0)),
    )


def _flat(model: nn.Module, bags: Tensor) -> ModelOutput:
    return _summed(model(bags))


def _summed(fine_logits: Tensor) -> ModelOutput:
    """Sum fine probabilities to coarse ones, for models without coarse outputs."""
    return ModelOutput(fine_logits, torch.softmax(fine_logits, dim=1) @ _MEMBERS.mT)


def _transformer() -> nn.Module:
    config = IatConfig(widths=(32, 32), heads=4, hidden_width=_WIDTH, gate_width=_GATES, value_kernel=5)
    return IntegratedAttentionTransformer(FEATURES, len(FINE), config)


def _predict_transformer(model: nn.Module, bags: Tensor) -> ModelOutput:
    assert isinstance(model, IntegratedAttentionTransformer)
    return _summed(torch.vmap(model.forward_training, randomness="different")(bags).logits)


def _hmil(name: str, losses: HmilLossConfig) -> DigitsModel:
    config = HmilConfig(bottleneck_width=_WIDTH, fine_width=_WIDTH, coarse_gate_width=_GATES, fine_gate_width=_GATES)

    def predict(model: nn.Module, bags: Tensor) -> ModelOutput:
        assert isinstance(model, HierarchicalMil)
        found = torch.vmap(model.forward_training, randomness="different")(bags)
        return ModelOutput(found.fine_logits, torch.softmax(found.coarse_logits, dim=1), found)

    def loss(output: ModelOutput, labels: Tensor, epoch: int, epochs: int) -> Tensor:
        found = output.rest
        batch = BagBatch(
            found.coarse_logits,
            found.fine_logits,
            tuple(found.coarse_attention),
            tuple(found.fine_attention),
            found.fine_embedding,
        )
        return hmil_losses(batch, labels, FINE_TO_COARSE, epoch=epoch, epochs=epochs, config=losses).total

    return DigitsModel(name, lambda: HierarchicalMil(FEATURES, len(COARSE), len(FINE), config), predict, loss)
