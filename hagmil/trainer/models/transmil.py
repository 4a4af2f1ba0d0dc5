"""TransMIL (Shao et al., NeurIPS 2021): a transformer with Nystrom attention and convolutions over a square of patches.

For a bag of n rows:

1. Project the rows: Linear, ReLU. Repeat the first rows until their number is a square, s·s; put the class token in
   front.
2. Nystrom attention over all rows, added to them (pre-norm).
3. Position encoding: the rows without the class token form an s x s image; depth-wise convolutions of 7, 5 and 3 pixels
   are added to it. They are one convolution of 7 pixels with the sum of the kernels.
4. Further attention layers; LayerNorm; the class token is classified.

The published model was trained with version 0.0.9 of the library nystrom-attention, which pads the sequence with zero
rows in front and then returns the first rows in place of the last; from 0.0.10 on it returns the last. The two differ
for every bag. ``returned_rows`` selects one.

The side s depends on the number of rows. In a captured graph it is computed from a tensor (the number of integers
whose square is below n), so that one graph is valid for every bag.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hagmil._models import FrozenModel
from hagmil.trainer.models.iat import StageOutput
from hagmil.trainer.models.nystrom import NystromAttention
from hagmil.trainer.models.pooling import hidden_layers

_KERNELS = (7, 5, 3)
_MAX_SIDE = 1 << 10


class TransMilConfig(FrozenModel):
    """Sizes of TransMIL; the defaults are the published ones."""

    hidden_widths: tuple[int, ...] = Field(
        default=(512,), min_length=1, description="widths of the linear layers; the last is that of the transformer"
    )
    layers: int = Field(default=2, ge=1, description="attention layers; the position encoding follows the first")
    heads: int = Field(default=8, ge=1, description="heads of the Nystrom attention")
    landmarks: int | None = Field(default=None, ge=1, description="landmarks; null: half the width")
    value_kernel: int = Field(default=33, ge=1, description="taps of the convolution over values; odd")
    returned_rows: Literal["last", "first"] = Field(
        default="last", description="rows of the padded attention; first: as nystrom-attention 0.0.9"
    )
    hidden_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout after the linear layers, in training")
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout after the attention, in training")

    @model_validator(mode="after")
    def _check_widths(self) -> TransMilConfig:
        if self.hidden_widths[-1] % self.heads:
            raise ValueError(f"width {self.hidden_widths[-1]} must divide into {self.heads} heads")
        if self.value_kernel % 2 == 0:
            raise ValueError(f"value_kernel {self.value_kernel} must be odd")
        return self


class TransLayer(nn.Module):
    """An attention layer (step 2).

    Args:
        width: width of a row.
        config: the other sizes.
    """

    def __init__(self, width: int, config: TransMilConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = NystromAttention(
            width,
            heads=config.heads,
            landmarks=config.landmarks or width // 2,
            pinv_iterations=6,
            value_kernel=config.value_kernel,
            dropout=config.attention_dropout,
        )
        self.pads_rows = config.returned_rows == "first"

    def forward(self, rows: Tensor) -> Tensor:
        """Let rows (n, width) attend to one another."""
        normed = self.norm(rows)
        attended: Tensor = self.attention(self._padded(normed) if self.pads_rows else normed)
        return rows + attended.narrow(0, 0, rows.shape[0])

    def class_attention(self, rows: Tensor) -> Tensor:
        """Attention (n,) of the class token, which is the first of rows (n, width)."""
        normed = self.norm(rows)
        if not self.pads_rows:
            return self.attention.attention_of(normed, 0)
        padded = self._padded(normed)
        return self.attention.attention_of(padded, 0).narrow(0, padded.shape[0] - rows.shape[0], rows.shape[0])

    def _padded(self, rows: Tensor) -> Tensor:
        """Rows with zero rows in front, so that their number is a multiple of the landmarks."""
        marks = self.attention.landmarks
        length = rows.shape[0]
        return F.pad(rows, (0, 0, (length + marks - 1) // marks * marks - length, 0))


class PositionEncoding(nn.Module):
    """Depth-wise convolutions over a square of rows (step 3).

    Args:
        width: width of a row.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        convolutions = [nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in _KERNELS]
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, rows: Tensor, side: Any) -> Tensor:
        """Add the convolutions to rows (side·side, width)."""
        kernel, bias = self._sum()
        image = rows.mT.reshape(1, self.width, side, side)
        convolved = F.conv2d(image, kernel, bias, padding=_KERNELS[0] // 2, groups=self.width)
        return rows + convolved.reshape(self.width, side * side).mT

    def _sum(self) -> tuple[Tensor, Tensor]:
        """Kernel (width, 1, 7, 7) and bias (width,) of the sum of all convolutions."""
        margins = [(_KERNELS[0] - size) // 2 for size in _KERNELS]
        parameters: dict[str, Tensor] = dict(self.convolutions.named_parameters())
        weights, biases = ([parameters[f"{index}.{name}"] for index in range(3)] for name in ("weight", "bias"))
        kernels = [F.pad(weight, (margin,) * 4) for weight, margin in zip(weights, margins, strict=True)]
        return torch.stack(kernels).sum(dim=0), torch.stack(biases).sum(dim=0)


class TransMil(nn.Module):
    """TransMIL.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: sizes of the network.
    """

    def __init__(self, feature_dim: int, classes: int, config: TransMilConfig) -> None:
        super().__init__()
        width = config.hidden_widths[-1]
        self.hidden = hidden_layers(feature_dim, config.hidden_widths, config.hidden_dropout)
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.layers = nn.ModuleList(TransLayer(width, config) for _ in range(config.layers))
        self.position = PositionEncoding(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and how much the class token attends to each patch in the last layer, mean over heads.
        """
        *_, last = self.rows_by_layer(features)
        layer = self.layers[-1]
        assert isinstance(layer, TransLayer)
        token = self.norm(layer(last).narrow(0, 0, 1))
        attention = layer.class_attention(last).narrow(0, 1, features.shape[0])
        return StageOutput(self.classifier(token).flatten(), attention)

    def rows_by_layer(self, features: Tensor) -> list[Tensor]:
        """Rows (s·s + 1, width) that each layer gets, with the class token first."""
        rows = self.hidden(features)  # step 1
        place, side = _square(features)
        rows = torch.cat([self.class_token, rows.index_select(0, place)])
        by_layer = [rows]
        for index, layer in enumerate(self.layers[:-1]):
            rows = layer(rows)  # step 2
            if index == 0:
                encoded = self.position(rows.narrow(0, 1, side * side), side)  # step 3
                rows = torch.cat([rows.narrow(0, 0, 1), encoded])
            by_layer.append(rows)
        return by_layer


def _square(features: Tensor) -> tuple[Tensor, Any]:
    """For n rows: int64 (s·s,), the row at each place of the square, and the side s."""
    rows: Any = features.shape[0]
    is_captured = isinstance(rows, torch.SymInt)
    if not is_captured:
        side = math.isqrt(rows - 1) + 1
        return torch.arange(side * side, device=features.device) % rows, side
    numbers = torch.arange(rows, device=features.device)
    side = (numbers * numbers < rows).sum().item()
    torch._check(side >= 1)  # type: ignore[no-untyped-call]
    torch._check(side <= _MAX_SIDE)  # type: ignore[no-untyped-call]
    return torch.arange(side * side, device=features.device) % (numbers >= 0).sum(), side
