"""A patch encoder with its normalisation inside, as the contract wants it: pixels in, features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What a backbone gives.

    Args:
        features: float (batch, dim).
    """

    features: Tensor


@dataclass(frozen=True, slots=True)
class TorchBackbone:
    """A patch encoder in torch, with what an export must know of it.

    Args:
        name: its name in cards and manifests.
        encoder: float (batch, 3, height, width), normalised, to float (batch, features).
        features: length of the feature vector.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        weights: where the weights came from, in words.
        patch_px: the one side that it takes, in pixels; None where any side from ``least_px`` will do.
        least_px: the smallest side that it takes, in pixels.
        native_px: the side that it was made for, or that is asked for, in pixels.
    """

    name: str
    encoder: nn.Module
    features: int
    mean: Channels
    std: Channels
    weights: str
    patch_px: int | None
    least_px: int
    native_px: int


class PatchEncoder(nn.Module):
    """An encoder that takes pixels as they are stored.

    The cast stands before the transpose: TensorRT takes uint8 no further than its first node.

    Args:
        encoder: float (batch, 3, height, width), normalised, to float (batch, dim).
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
    """

    def __init__(self, encoder: nn.Module, mean: Channels, std: Channels) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = normalisation(mean, std)
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))

    def forward(self, patches: Tensor) -> Features:
        """Encode patches.

        Args:
            patches: uint8 (batch, height, width, 3), RGB.

        Returns:
            Features, float (batch, dim).
        """
        pixels = patches.to(self.scale.dtype).permute(0, 3, 1, 2)  # (batch, 3, height, width)
        return Features(self.encoder(pixels * self.scale + self.shift))


def normalisation(mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """Per channel, the factor and the summand that normalise pixels of 0..255 in two operations."""
    red, green, blue = (1 / (255 * deviation) for deviation in std)
    shift = tuple(-average / deviation for average, deviation in zip(mean, std, strict=True))
    return (red, green, blue), (shift[0], shift[1], shift[2])
