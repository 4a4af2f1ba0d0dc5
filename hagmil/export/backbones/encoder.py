"""Patch encoders in torch with normalisation included: uint8 pixels in, features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """The output of a backbone.

    Args:
        features: float (batch, dim).
    """

    features: Tensor


@dataclass(frozen=True, slots=True)
class TorchBackbone:
    """A patch encoder in torch, with the properties that its export needs.

    Args:
        name: name in cards and manifests.
        encoder: maps normalised float (batch, 3, height, width) to float (batch, features).
        features: length of the feature vector.
        mean: mean of each channel, of pixels in 0..1.
        std: standard deviation of each channel, of pixels in 0..1.
        weights: description of the origin of the weights.
        patch_px: the only patch size that it accepts, in pixels; None for any size of ``least_px`` or more.
        least_px: smallest patch size in pixels.
        native_px: patch size that it was trained with, or that is requested, in pixels.
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
    """An encoder with uint8 input and normalisation.

    The cast comes before the transpose, because TensorRT supports uint8 in the first node only.

    Args:
        encoder: maps normalised float (batch, 3, height, width) to float (batch, dim).
        mean: mean of each channel, of pixels in 0..1.
        std: standard deviation of each channel, of pixels in 0..1.
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
    """Return scale and shift of each channel, so that ``pixels * scale + shift`` normalises pixels in 0..255."""
    red, green, blue = (1 / (255 * deviation) for deviation in std)
    shift = tuple(-average / deviation for average, deviation in zip(mean, std, strict=True))
    return (red, green, blue), (shift[0], shift[1], shift[2])
