"""The models of the digits benchmark: this package's, and two plain ones beside them.

Each is a :class:`Contender`: a network, what its outputs mean, and its loss. All take bags of one size at once.
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
class Said:
    """What a model says of some bags.

    Args:
        fine_logits: (bags, fine).
        coarse: (bags, coarse), probabilities.
        rest: what its loss needs besides.
    """

    fine_logits: Tensor
    coarse: Tensor
    rest: Any = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table.

    Args:
        name: as the table has it.
        make: a fresh network from torch's generator.
        say: the network on features (bags, images, 64).
        loss: of what it said, against fine labels (bags,), at epoch t of T.
    """

    name: str
    make: Callable[[], nn.Module]
    say: Callable[[nn.Module, Tensor], Said]
    loss: Callable[[Said, Tensor, int, int], Tensor] = field(
        default=lambda said, labels, _epoch, _epochs: F.cross_entropy(said.fine_logits, labels)
    )


class MeanPooling(nn.Module):
    """A layer an instance, the mean over the bag, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(FEATURES, _WIDTH), nn.ReLU())
        self.classify = nn.Linear(_WIDTH, len(FINE))

    def forward(self, bags: Tensor) -> Tensor:
        """Fine logits (bags, fine) of features (bags, images, 64)."""
        return self.classify(self.encode(bags).mean(dim=1))  # type: ignore[no-any-return]


class AttentionPooling(nn.Module):
    """The same with gated attention (Ilse et al. 2018, section 2.4) in place of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(FEATURES, _WIDTH), nn.ReLU())
        self.signal, self.gate = nn.Linear(_WIDTH, _GATES), nn.Linear(_WIDTH, _GATES)
        self.score = nn.Linear(_GATES, 1)
        self.classify = nn.Linear(_WIDTH, len(FINE))

    def forward(self, bags: Tensor) -> Tensor:
        """Fine logits (bags, fine) of features (bags, images, 64)."""
        rows = self.encode(bags)
        scores = self.score(torch.tanh(self.signal(rows)) * torch.sigmoid(self.gate(rows)))  # (bags, images, 1)
        return self.classify((torch.softmax(scores, dim=1) * rows).sum(dim=1))  # type: ignore[no-any-return]


def contenders() -> tuple[Contender, ...]:
    """All lines of the table."""
    return (
        Contender("mean pooling", MeanPooling, _flat),
        Contender("attention MIL", AttentionPooling, _flat),
        Contender("HAG-MIL transformer", _transformer, _say_transformer),
        _hmil("HMIL", HmilLossConfig()),
        _hmil("HMIL without alignment", HmilLossConfig(bag_alignment=0, instance_alignment=0)),
        _hmil("HMIL without contrastive", HmilLossConfig(contrastive=0)),
        _hmil("HMIL without either", HmilLossConfig(bag_alignment=0, instance_alignment=0, contrastive=0)),
    )


def _flat(model: nn.Module, bags: Tensor) -> Said:
    return _summed(model(bags))


def _summed(fine_logits: Tensor) -> Said:
    """Without a coarse output of its own, a model's coarse probabilities are its fine ones, summed."""
    return Said(fine_logits, torch.softmax(fine_logits, dim=1) @ _MEMBERS.mT)


def _transformer() -> nn.Module:
    config = IatConfig(widths=(32, 32), heads=4, hidden_width=_WIDTH, gate_width=_GATES, value_kernel=5)
    return IntegratedAttentionTransformer(FEATURES, len(FINE), config)


def _say_transformer(model: nn.Module, bags: Tensor) -> Said:
    assert isinstance(model, IntegratedAttentionTransformer)
    return _summed(torch.vmap(model.forward_training, randomness="different")(bags).logits)


def _hmil(name: str, losses: HmilLossConfig) -> Contender:
    config = HmilConfig(bottleneck_width=_WIDTH, fine_width=_WIDTH, coarse_gate_width=_GATES, fine_gate_width=_GATES)

    def say(model: nn.Module, bags: Tensor) -> Said:
        assert isinstance(model, HierarchicalMil)
        found = torch.vmap(model.forward_training, randomness="different")(bags)
        return Said(found.fine_logits, torch.softmax(found.coarse_logits, dim=1), found)

    def loss(said: Said, labels: Tensor, epoch: int, epochs: int) -> Tensor:
        found = said.rest
        batch = BagBatch(
            found.coarse_logits,
            found.fine_logits,
            tuple(found.coarse_attention),
            tuple(found.fine_attention),
            found.fine_embedding,
        )
        return hmil_losses(batch, labels, FINE_TO_COARSE, epoch=epoch, epochs=epochs, config=losses).total

    return Contender(name, lambda: HierarchicalMil(FEATURES, len(COARSE), len(FINE), config), say, loss)
