"""HMIL: class-wise attention at one spacing, for two layers of labels (Jin et al., IEEE TMI 2025, section III).

For a bag of n rows:

1. h1: two linear layers with a ReLU between them, back to the width of the features.
2. h2: one linear layer over h1.
3. Gated attention with one score per class (Ilse et al. 2018, section 2.4), over h1 for the coarse classes and over h2
   for the fine classes; softmax over patches.
4. Class embeddings: the weighted sum of the rows for each class.
5. Logits: one linear layer for each layer of labels, shared by its classes.

No operation branches on the number of rows or squeezes an axis by its length, so one graph is valid for every bag.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from hagmil._models import FrozenModel
from hagmil.trainer.models.limits import Dropout, LayerWidth


class HmilConfig(FrozenModel):
    """Sizes of the network; the defaults are the published sizes."""

    bottleneck_width: LayerWidth = Field(default=256, description="width between the two linear layers of h1")
    fine_width: LayerWidth = Field(default=256, description="width of a row of h2, for the fine attention")
    coarse_gate_width: LayerWidth = Field(default=256, description="width of the gates of the coarse attention")
    fine_gate_width: LayerWidth = Field(default=64, description="width of the gates of the fine attention")
    gate_dropout: Dropout = Field(default=0.0, description="dropout in the gates; the published one is 0")


class HmilOutput(NamedTuple):
    """The model outputs for a bag, as in the contract of exported models.

    Args:
        coarse_logits: float (coarse,).
        fine_logits: float (fine,).
        coarse_attention: float (coarse, patches), each row sums to 1.
        fine_attention: float (fine, patches), each row sums to 1.
    """

    coarse_logits: Tensor
    fine_logits: Tensor
    coarse_attention: Tensor
    fine_attention: Tensor


class HmilTrainingOutput(NamedTuple):
    """The model outputs for a bag, with the class embeddings for the contrastive loss.

    Args:
        coarse_logits: float (coarse,).
        fine_logits: float (fine,).
        coarse_attention: float (coarse, patches), each row sums to 1.
        fine_attention: float (fine, patches), each row sums to 1.
        fine_embedding: float (fine, fine_width), class embeddings, each of length 1.
    """

    coarse_logits: Tensor
    fine_logits: Tensor
    coarse_attention: Tensor
    fine_attention: Tensor
    fine_embedding: Tensor


class GatedClassAttention(nn.Module):
    """Gated attention with one score per class and softmax over patches (step 3).

    Args:
        width: width of a row.
        gate_width: width of the tanh gate and of the sigmoid gate.
        classes: number of classes.
        dropout: dropout rate of the gates, in training.
    """

    def __init__(self, width: int, gate_width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.tanh_gate = nn.Linear(width, gate_width)
        self.sigmoid_gate = nn.Linear(width, gate_width)
        self.score = nn.Linear(gate_width, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute attention (classes, n) over rows (n, width)."""
        signal = self.dropout(torch.tanh(self.tanh_gate(rows)))
        gate = self.dropout(torch.sigmoid(self.sigmoid_gate(rows)))
        scores = self.score(signal * gate)  # (n, classes)
        return torch.softmax(scores.mT, dim=1)  # (n, classes) -> (classes, n)


class HierarchicalMil(nn.Module):
    """The model of HMIL: maps the features of a bag to coarse and fine logits and class-wise attention.

    Args:
        feature_dim: length of a feature vector.
        coarse: number of coarse classes.
        fine: number of fine classes.
        config: sizes of the network; the published sizes by default.
    """

    def __init__(self, feature_dim: int, coarse: int, fine: int, config: HmilConfig | None = None) -> None:
        super().__init__()
        config = config or HmilConfig()
        self.config = config
        self.extract = nn.Sequential(
            nn.Linear(feature_dim, config.bottleneck_width),
            nn.ReLU(),
            nn.Linear(config.bottleneck_width, feature_dim),
        )
        self.reduce = nn.Linear(feature_dim, config.fine_width)
        self.coarse_attention = GatedClassAttention(feature_dim, config.coarse_gate_width, coarse, config.gate_dropout)
        self.fine_attention = GatedClassAttention(config.fine_width, config.fine_gate_width, fine, config.gate_dropout)
        self.coarse_classifier = nn.Linear(feature_dim, 1)
        self.fine_classifier = nn.Linear(config.fine_width, 1)
        self.apply(_initialise)

    def forward(self, features: Tensor) -> HmilOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits and class-wise attention of both layers of labels.
        """
        output = self.forward_training(features)
        return HmilOutput(output.coarse_logits, output.fine_logits, output.coarse_attention, output.fine_attention)

    def forward_training(self, features: Tensor) -> HmilTrainingOutput:
        """Classify a bag as ``forward`` does, and return the fine class embeddings too."""
        coarse_rows = self.extract(features)  # step 1: (n, feature_dim)
        fine_rows = self.reduce(coarse_rows)  # step 2: (n, fine_width)
        coarse_attention = self.coarse_attention(coarse_rows)  # step 3: (coarse, n)
        fine_attention = self.fine_attention(fine_rows)  # (fine, n)
        coarse_embedding = coarse_attention @ coarse_rows  # step 4: (coarse, feature_dim)
        fine_embedding = fine_attention @ fine_rows  # (fine, fine_width)
        return HmilTrainingOutput(
            self.coarse_classifier(coarse_embedding).flatten(),  # step 5: (coarse, 1) -> (coarse,)
            self.fine_classifier(fine_embedding).flatten(),  # (fine, 1) -> (fine,)
            coarse_attention,
            fine_attention,
            nn.functional.normalize(fine_embedding, dim=1),
        )


def _initialise(module: nn.Module) -> None:
    """The published initialisation: weights normal (He et al. 2015), biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)
