"""The Integrated Attention Transformer of HAG-MIL (Xiong et al., IJCAI 2023, section 3.2), the model of one stage.

A block, for a bag of n rows:

1. Project the rows to the width of the block: Linear, LayerNorm, GELU.
2. Nystrom attention with the scaled residual of Admin: h = x·omega + attention(LayerNorm(x)).
3. Score each row by gated attention over LayerNorm(h); softmax over rows gives weights.
4. The weighted sum of h, through the same LayerNorm, is projected to the last width: the slide embedding of the block.

The network:

5. Each block takes the rows h of the previous one.
6. One learned linear layer combines the embeddings of all blocks, another classifies.

The raw scores of the last block are the attention that selects the patches of the next stage.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hagmil._models import FrozenModel, Within
from hagmil.spec import Readout
from hagmil.trainer.models.limits import LARGEST_MODEL, Dropout, LayerWidth
from hagmil.trainer.models.nystrom import NystromAttention

RESIDUAL_SCALE = math.sqrt(9 / math.log(9) - 1)
"""Omega of the Admin initialisation for 8 residual layers (Liu et al. 2020, section 4.1)."""


class IatConfig(FrozenModel):
    """Form and sizes of the stage models; the defaults are the published transformer."""

    readout: Readout = Field(
        default="pooled",
        description="how logits are computed; pooled: from the attention-weighted mean of the rows, as published; "
        "additive: the attention-weighted mean of the logits of each row",
    )
    rows: Literal["transformer", "independent"] = Field(
        default="transformer",
        description="transformer: rows attend to one another, as published; independent: each row depends on its patch "
        "only, which requires readout: additive",
    )
    widths: tuple[LayerWidth, ...] = Field(
        default=(1024, 1536, 512, 1024),
        min_length=1,
        max_length=32,
        description="widths of the blocks; each block has half as many landmarks",
    )
    heads: Annotated[int, Within(1, 256)] = Field(default=8, description="heads of the Nystrom attention")
    hidden_width: LayerWidth = Field(default=512, description="width of the rows for the gates and the instance loss")
    gate_width: LayerWidth = Field(default=256, description="width of the tanh and of the sigmoid gate")
    gate_dropout: Dropout = Field(default=0.25, description="dropout in the gates")
    attention_dropout: Dropout = Field(default=0.3, description="dropout after the Nystrom attention")
    pinv_iterations: Annotated[int, Within(1, 100)] = Field(
        default=6, description="Newton-Schulz steps of the pseudo-inverse"
    )
    value_kernel: Annotated[int, Within(1, 1025)] = Field(
        default=33, description="taps of the convolution over values; odd"
    )
    count_padding: bool = Field(
        default=True,
        description="true: zero rows that pad a bag to a multiple of the landmarks count in attention, as published",
    )

    @model_validator(mode="after")
    def _check_form(self) -> IatConfig:
        weights = sum(5 * width**2 for width in self.widths)  # projection to the width, queries, keys, values, output
        if weights > LARGEST_MODEL:
            raise ValueError(f"widths give about {weights:,} weights; at most {LARGEST_MODEL:,} are allowed")
        if self.rows == "independent":
            if self.readout != "additive":
                raise ValueError("rows: independent requires readout: additive")
            return self
        for width in self.widths:
            if width < 2 or width % 2 or width % self.heads:
                raise ValueError(f"width {width} must be even and divide into {self.heads} heads")
        if self.value_kernel % 2 == 0:
            raise ValueError(f"value_kernel {self.value_kernel} must be odd")
        return self

    @property
    def landmarks(self) -> tuple[int, ...]:
        """Number of landmarks of each block: half its width."""
        return tuple(width // 2 for width in self.widths)


class StageOutput(NamedTuple):
    """The outputs of a stage model for a bag, as in the contract of exported models.

    Args:
        logits: float (classes,).
        attention: float (patches,), raw scores of the last block, before any softmax; of heads with one attention for
            each class, (classes, patches).
    """

    logits: Tensor
    attention: Tensor


class TrainingOutput(NamedTuple):
    """The outputs of a stage model for a bag, with the hidden features for the instance loss.

    Args:
        logits: float (classes,).
        attention: float (patches,), raw scores of the last block.
        hidden: float (patches, hidden_width), hidden features of the last block.
    """

    logits: Tensor
    attention: Tensor
    hidden: Tensor


class _BlockOutput(NamedTuple):
    rows: Tensor  # (n, width)
    embedding: Tensor  # (last width,)
    scores: Tensor  # (n,)
    hidden: Tensor  # (n, hidden_width)


class GatedAttention(nn.Module):
    """Gated attention with one score per row (Ilse et al. 2018, section 2.4), over hidden features.

    Args:
        width: width of a row.
        hidden_width: width of the hidden features.
        gate_width: width of the tanh gate and of the sigmoid gate.
        dropout: dropout rate of hidden features and gates, in training.
    """

    def __init__(self, width: int, hidden_width: int, gate_width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden_width)
        self.tanh_gate = nn.Linear(hidden_width, gate_width)
        self.sigmoid_gate = nn.Linear(hidden_width, gate_width)
        self.score = nn.Linear(gate_width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores (n,) and hidden features (n, hidden_width) of rows (n, width)."""
        hidden = self.dropout(nn.functional.gelu(self.hidden(rows)))
        signal = self.dropout(torch.tanh(self.tanh_gate(hidden)))
        gate = self.dropout(torch.sigmoid(self.sigmoid_gate(hidden)))
        scores = self.score(signal * gate).flatten()  # (n, 1) -> (n,)
        return scores, hidden


def projection(width_in: int, width: int) -> nn.Sequential:
    """Return the projection of rows to another width (step 1)."""
    return nn.Sequential(nn.Linear(width_in, width), nn.LayerNorm(width), nn.GELU())


class AttentionBlock(nn.Module):
    """Steps 1 and 2 of a block: map rows (n, width_in) to rows (n, width) that attend to one another.

    Args:
        width_in: width of an input row.
        width: width d of the block, which has d/2 landmarks.
        config: the other sizes.
    """

    def __init__(self, width_in: int, width: int, config: IatConfig) -> None:
        super().__init__()
        self.project = projection(width_in, width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = NystromAttention(
            width,
            heads=config.heads,
            landmarks=width // 2,
            pinv_iterations=config.pinv_iterations,
            value_kernel=config.value_kernel,
            dropout=config.attention_dropout,
            count_padding=config.count_padding,
        )
        self.residual_scale: Tensor
        self.register_buffer("residual_scale", torch.tensor([RESIDUAL_SCALE]))

    def attend(self, rows: Tensor) -> Tensor:
        """Project rows (n, width_in), and let them attend to one another: (n, width)."""
        rows = self.project(rows)  # step 1: (n, width)
        attended: Tensor = rows * self.residual_scale + self.attention(self.attention_norm(rows))  # step 2
        return attended


class IatBlock(AttentionBlock):
    """One block of the transformer.

    Args:
        width_in: width of an input row.
        width: width d of the block, which has d/2 landmarks.
        width_out: length of the slide embedding.
        config: the other sizes.
    """

    def __init__(self, width_in: int, width: int, width_out: int, config: IatConfig) -> None:
        super().__init__(width_in, width, config)
        self.norm = nn.LayerNorm(width)
        self.gates = GatedAttention(width, config.hidden_width, config.gate_width, config.gate_dropout)
        self.embed = projection(width, width_out)

    def forward(self, rows: Tensor) -> _BlockOutput:
        """Run the block on rows (n, width_in)."""
        rows = self.attend(rows)  # steps 1 and 2
        scores, hidden = self.gates(self.norm(rows))  # step 3
        weights = torch.softmax(scores.unsqueeze(0), dim=1)  # (1, n): TensorRT has no softmax over a single axis
        embedding = self.embed(self.norm(torch.mm(weights, rows))).flatten()  # step 4: (1, width_out) -> (width_out,)
        return _BlockOutput(rows, embedding, scores, hidden)


class IntegratedAttentionTransformer(nn.Module):
    """The model of one stage: maps the features of a bag to logits and attention.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: sizes of the network; the published sizes by default.
    """

    def __init__(self, feature_dim: int, classes: int, config: IatConfig | None = None) -> None:
        super().__init__()
        config = config or IatConfig()
        self.config = config
        widths_in = (feature_dim, *config.widths[:-1])
        last = config.widths[-1]
        self.blocks = nn.ModuleList(
            IatBlock(width_in, width, last, config) for width_in, width in zip(widths_in, config.widths, strict=True)
        )
        self.combine = nn.Linear(len(config.widths), 1)
        self.classifier = nn.Linear(last, classes)
        self.instance_classifiers = nn.ModuleList(nn.Linear(config.hidden_width, 2) for _ in range(classes))

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and the attention that selects the patches of the next stage.
        """
        output = self.forward_training(features)
        return StageOutput(output.logits, output.attention)

    def forward_training(self, features: Tensor, *, checkpoint_blocks: bool = False) -> TrainingOutput:
        """Classify a bag as ``forward`` does, and return the hidden features too.

        Args:
            features: float32 (patches, feature_dim), at least one patch.
            checkpoint_blocks: keep only the input of each block, and compute the block again in the backward pass
                with the same dropout. This gives the same gradients with less memory.
        """
        rows = features
        embeddings: list[Tensor] = []
        for block in self.blocks:  # step 5
            output: _BlockOutput = checkpoint(block, rows, use_reentrant=False) if checkpoint_blocks else block(rows)
            rows = output.rows
            embeddings.append(output.embedding)
        stacked = torch.stack(embeddings, dim=1)  # (last width, blocks)
        combined = self.combine(stacked).flatten()  # step 6: (last width, 1) -> (last width,)
        return TrainingOutput(self.classifier(combined), output.scores, output.hidden)
