"""ResNet-50 up to its third stage (He et al., CVPR 2016; stride in the 3 x 3 convolution): 1024 features.

Modules have torchvision's names, so that the published ImageNet weights can be loaded; ``layer4`` and ``fc`` in those
files are ignored.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hagmil.export.backbones.encoder import IMAGENET_MEAN, IMAGENET_STD, TorchBackbone
from hagmil.export.backbones.weights import describe_file, load_exactly, read_weights

NAME = "resnet50-trunc"
_EXPANSION = 4
_IGNORED = ("layer4.", "fc.")
_SEED = 0
_RANDOM_GAIN = 0.5  # of the last normalisation in each block; keeps the features of 13 untrained blocks near 1


class Bottleneck(nn.Module):
    """A residual block of three convolutions, 1 x 1, 3 x 3, 1 x 1.

    Args:
        channels_in: input channels.
        channels: channels of the 3 x 3 convolution; the block has four times as many output channels.
        stride: stride of the 3 x 3 convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * _EXPANSION
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, channels_in, height, width) to (batch, channels_out, height/stride, width/stride)."""
        inner = torch.relu(self.bn1(self.conv1(maps)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        return torch.relu(self.bn3(self.conv3(inner)) + self.downsample(maps))


class TruncatedResNet50(nn.Module):
    """ResNet-50 without its fourth stage, with average pooling."""

    features = 256 * _EXPANSION

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _layer(64, 64, blocks=3, stride=1)
        self.layer2 = _layer(256, 128, blocks=4, stride=2)
        self.layer3 = _layer(512, 256, blocks=6, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (batch, 3, height, width) to features (batch, 1024)."""
        maps = self.maxpool(torch.relu(self.bn1(self.conv1(images))))  # (batch, 64, height/4, width/4)
        maps = self.layer3(self.layer2(self.layer1(maps)))  # (batch, 1024, height/16, width/16)
        pooled: Tensor = maps.mean(dim=(2, 3))  # (batch, 1024)
        return pooled


def resnet50_trunc(weights: Path | None) -> TorchBackbone:
    """Return the backbone ``resnet50-trunc``.

    Args:
        weights: file of ResNet-50 weights with torchvision's names; None for random weights with a fixed seed.

    Raises:
        BundleError: the file is refused or does not fit.
    """
    model = TruncatedResNet50()
    if weights is None:
        _randomise(model)
    else:
        load_exactly(model, read_weights(weights), ignored=_IGNORED)
    return TorchBackbone(
        name=NAME,
        encoder=model.eval(),
        features=TruncatedResNet50.features,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        weights=f"random, seed {_SEED}" if weights is None else describe_file(weights),
        patch_px=None,
        least_px=32,
        native_px=224,
    )


def _layer(channels_in: int, channels: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride)
    rest = (Bottleneck(channels * _EXPANSION, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _randomise(model: TruncatedResNet50) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, _RANDOM_GAIN)
