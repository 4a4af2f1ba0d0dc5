"""Attention-based pooling: ABMIL (Ilse et al. 2018) and CLAM (Lu et al. 2021), with one or several branches.

For a bag of n rows:

1. Hidden features: linear layers with ReLU.
2. Scores: tanh of a linear layer, multiplied by the sigmoid of another one if the attention is gated, then a linear
   layer with one score per row, or per row and class ("multi-branch").
3. Softmax over rows; the weighted sums of the hidden features are the embedding of the bag, or one for each class.
4. Logits: a linear layer; of multi-branch models, one for each class over its own embedding.

CLAM adds one classifier for each class to train on the patches with the highest and the lowest attention; it has no
effect on logits and attention.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from hagmil._models import FrozenModel
from hagmil.trainer.models.iat import StageOutput, TrainingOutput
from hagmil.trainer.models.limits import Dropout, LayerWidth
from hagmil.trainer.models.pooling import hidden_layers


class AbmilConfig(FrozenModel):
    """Sizes of attention-based pooling."""

    hidden_widths: tuple[LayerWidth, ...] = Field(
        default=(512,), max_length=16, description="widths of the linear layers before attention"
    )
    gated: bool = Field(default=True, description="true: tanh and sigmoid gates; false: tanh only")
    gate_width: LayerWidth = Field(default=256, description="width of the gates")
    dropout: Dropout = Field(default=0.25, description="dropout of hidden features and gates, in training")


class ClamConfig(AbmilConfig):
    """Sizes of CLAM; the defaults are those of its small form (big: gate_width 384)."""


class AttentionPooling(nn.Module):
    """Scores of rows by plain or gated attention (step 2).

    Args:
        width: width of a row.
        gate_width: width of the gates.
        scores: scores for each row.
        gated: use the sigmoid gate too.
        dropout: dropout rate of the gates, in training.
    """

    def __init__(self, width: int, gate_width: int, scores: int, *, gated: bool, dropout: float) -> None:
        super().__init__()
        self.tanh_gate = nn.Linear(width, gate_width)
        self.sigmoid_gate = nn.Linear(width, gate_width) if gated else None
        self.score = nn.Linear(gate_width, scores)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute scores (scores, n) of rows (n, width)."""
        signal = self.dropout(torch.tanh(self.tanh_gate(rows)))
        if self.sigmoid_gate is not None:
            signal = signal * self.dropout(torch.sigmoid(self.sigmoid_gate(rows)))
        scores: Tensor = self.score(signal).mT  # (n, scores) -> (scores, n)
        return scores


class AttentionMil(nn.Module):
    """ABMIL, or CLAM if the configuration is that of CLAM.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: sizes of the network.
        branches: attentions: 1, or the number of classes.
    """

    def __init__(self, feature_dim: int, classes: int, config: AbmilConfig, branches: int = 1) -> None:
        super().__init__()
        width = (feature_dim, *config.hidden_widths)[-1]
        self.hidden = hidden_layers(feature_dim, config.hidden_widths, config.dropout)
        self.attention = AttentionPooling(
            width, config.gate_width, branches, gated=config.gated, dropout=config.dropout
        )
        self.branches = branches
        self.classifier = nn.Linear(width, classes)
        self.instance_classifiers = nn.ModuleList(
            nn.Linear(width, 2) for _ in range(classes if isinstance(config, ClamConfig) else 0)
        )

    @classmethod
    def per_class(cls, feature_dim: int, classes: int, config: AbmilConfig) -> AttentionMil:
        """Build a model with one attention for each class."""
        return cls(feature_dim, classes, config, branches=classes)

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and the raw scores as attention: (patches,), or (classes, patches) with several branches.
        """
        output = self.forward_training(features)
        return StageOutput(output.logits, output.attention)

    def forward_training(self, features: Tensor) -> TrainingOutput:
        """Classify a bag as ``forward`` does, and return the hidden features too."""
        hidden = self.hidden(features)  # step 1: (n, width)
        scores = self.attention(hidden)  # step 2: (branches, n)
        embedding = torch.mm(torch.softmax(scores, dim=1), hidden)  # step 3: (branches, width)
        if self.branches == 1:
            return TrainingOutput(self.classifier(embedding).flatten(), scores.flatten(), hidden)  # step 4
        logits = (embedding * self.classifier.weight).sum(dim=1) + self.classifier.bias  # step 4: (classes,)
        return TrainingOutput(logits, scores, hidden)
