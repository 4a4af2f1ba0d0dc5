"""The backbone ``tiny``: a small convolutional encoder for the demonstration and the tests.

``scripts/train_tiny_backbone.py`` trains it on patches of phantoms at the spacings of all stages. It is not
for real slides.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hagmil.export.backbones.encoder import Channels, TorchBackbone
from hagmil.export.backbones.weights import describe_file, load_exactly, read_weights

NAME = "tiny"
PATCH_PX = 64
SHIPPED = Path(__file__).with_name("trained") / "tiny.safetensors"
MEAN: Channels = (0.5, 0.5, 0.5)
STD: Channels = (0.25, 0.25, 0.25)
_SEED = 0


class TinyEncoder(nn.Module):
    """Four convolutions; the features are mean and standard deviation of each channel of the last feature map."""

    channels = (16, 32, 48, 64)
    features = 2 * channels[-1]

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = self.channels
        self.layers = nn.Sequential(
            *_convolution(3, first, kernel=5, stride=2),
            *_convolution(first, second, kernel=3, stride=2),
            *_convolution(second, third, kernel=3, stride=2),
            *_convolution(third, fourth, kernel=3, stride=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (batch, 3, height, width) to features (batch, 128)."""
        maps = self.layers(images)  # (batch, 64, height/8, width/8)
        mean = maps.mean(dim=(2, 3), keepdim=True)
        deviation = ((maps - mean).square().mean(dim=(2, 3)) + 1e-4).sqrt()  # 1e-4 bounds the root's gradient
        return torch.cat((mean.flatten(1), deviation), dim=1)  # 2 x (batch, 64) -> (batch, 128)


def tiny(weights: Path | None) -> TorchBackbone:
    """Return the backbone ``tiny``.

    Args:
        weights: file of its weights; None for random weights with a fixed seed.

    Raises:
        BundleError: the file is refused or does not fit.
    """
    model = TinyEncoder()
    if weights is None:
        randomise(model, seed=_SEED)
        description = f"random, seed {_SEED}"
    else:
        load_exactly(model, read_weights(weights))
        description = describe_file(weights)
        if weights == SHIPPED:
            description = f"shipped with hagmil, trained on phantoms: {description}"
    return TorchBackbone(
        name=NAME,
        encoder=model.eval(),
        features=TinyEncoder.features,
        mean=MEAN,
        std=STD,
        weights=description,
        patch_px=None,
        least_px=16,
        native_px=PATCH_PX,
    )


def randomise(model: TinyEncoder, *, seed: int) -> None:
    """Initialise an encoder with random weights that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)


def _convolution(channels_in: int, channels: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
