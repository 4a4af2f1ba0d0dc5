"""The transformer over tiles of STAMP (El Nahhas et al., Nature Protocols 2025; Wagner et al., Cancer Cell 2023).

For a bag of n rows:

1. Project the rows: Linear, GELU (or ReLU); put the class token in front.
2. Layers with self-attention over all rows, each pre-norm: attention, then a feed-forward network (Linear, GELU,
   Linear), both added to the rows.
3. LayerNorm; the class token is classified.

Attention takes n² memory for one head; in evaluation, heads run one after the other. The last layer computes the row of
the class token only, since no other row has an effect. There are no positions: the variant with ALiBi needs the
coordinates of the tiles, which a head does not get.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hagmil._models import FrozenModel
from hagmil.trainer.models.iat import StageOutput


class TileTransformerConfig(FrozenModel):
    """Form and sizes of the transformer; the defaults are those of STAMP."""

    width: int = Field(default=512, ge=1, description="width of a row")
    layers: int = Field(default=2, ge=1, description="attention layers")
    heads: int = Field(default=8, ge=1, description="attention heads")
    inner_width: int = Field(default=512, ge=0, description="width inside the feed-forward networks; 0: none")
    projection: Literal["gelu", "relu"] = Field(default="gelu", description="activation after the projection")
    tiles_see_class_token: bool = Field(
        default=True, description="false: only the class token attends to itself, as STAMP 2.0 and 2.1 predict"
    )
    dropout: float = Field(default=0.25, ge=0, lt=1, description="dropout in the layers, in training")

    @model_validator(mode="after")
    def _check_widths(self) -> TileTransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads")
        return self


class SelfAttention(nn.Module):
    """Multi-head self-attention with pre-norm.

    Args:
        config: sizes of the network.
    """

    def __init__(self, config: TileTransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.to_qkv = nn.Linear(config.width, 3 * config.width)
        self.to_out = nn.Linear(config.width, config.width)
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.sees_class_token = config.tiles_see_class_token

    def forward(self, rows: Tensor, *, only_token: bool = False) -> tuple[Tensor, Tensor]:
        """Attend over all rows.

        Args:
            rows: float (n + 1, width), the class token first.
            only_token: compute the row of the class token only.

        Returns:
            float (n + 1 or 1, width), and the attention (n + 1,) of the class token, mean over heads.
        """
        normed = self.norm(rows)
        asking = normed.narrow(0, 0, 1) if only_token else normed
        attended, of_token = [], []
        for head in range(self.heads):
            query, key, value = (
                F.linear(source, self._part(self.to_qkv.weight, part, head), self._part(self.to_qkv.bias, part, head))
                for part, source in enumerate((asking, normed, normed))
            )
            scores = torch.mm(query * self.head_width**-0.5, key.mT)  # (asking, n + 1)
            if not self.sees_class_token and not only_token:
                scores = scores + _hide_token(scores)
            weights = torch.softmax(scores, dim=1)
            attended.append(torch.mm(weights, value))
            of_token.append(weights.narrow(0, 0, 1))
        return self.to_out(torch.cat(attended, dim=1)), torch.cat(of_token).mean(dim=0)

    def _part(self, weight: Tensor, part: int, head: int) -> Tensor:
        """The slice of a weight for one head of queries (part 0), keys (1) or values (2)."""
        start = (part * self.heads + head) * self.head_width
        return weight[start : start + self.head_width]


class TransformerLayer(nn.Module):
    """One layer (step 2).

    Args:
        config: sizes of the network.
    """

    def __init__(self, config: TileTransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = None
        if config.inner_width:
            self.feed_forward = nn.Sequential(
                nn.LayerNorm(config.width),
                nn.Linear(config.width, config.inner_width),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.inner_width, config.width),
                nn.Dropout(config.dropout),
            )

    def forward(self, rows: Tensor, *, only_token: bool = False) -> tuple[Tensor, Tensor]:
        """Run the layer; see :meth:`SelfAttention.forward`."""
        attended, attention = self.attention(rows, only_token=only_token)
        rows = (rows.narrow(0, 0, 1) if only_token else rows) + self.dropout(attended)
        return rows if self.feed_forward is None else rows + self.feed_forward(rows), attention


class TileTransformer(nn.Module):
    """The transformer.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: form and sizes of the network.
    """

    def __init__(self, feature_dim: int, classes: int, config: TileTransformerConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(feature_dim, config.width),
            nn.GELU() if config.projection == "gelu" else nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.class_token = nn.Parameter(torch.randn(1, config.width))
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.classifier = nn.Linear(config.width, classes)

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and the attention of the class token to each patch in the last layer, mean over heads.
        """
        rows = torch.cat([self.class_token, self.project(features)])  # step 1: (n + 1, width)
        for layer in self.layers[:-1]:
            rows, _ = layer(rows)  # step 2
        token, attention = self.layers[-1](rows, only_token=True)
        logits = self.classifier(self.norm(token)).flatten()  # step 3
        return StageOutput(logits, attention.narrow(0, 1, features.shape[0]))


def _hide_token(scores: Tensor) -> Tensor:
    """A bias for scores (rows, rows) that hides the class token, the first column, from all other rows."""
    column = F.pad(torch.full_like(scores[1:, :1], float("-inf")), (0, 0, 1, 0))  # (rows, 1)
    return F.pad(column, (0, scores.shape[1] - 1))
