"""Graphs for building engines: every kind of model that hagmil deploys, with random weights.

The benchmark ``benchmarks/tensorrt_builds.py`` builds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor, nn

from hagmil._tensorrt.profiles import Range, backbone_profile, bag_profiles
from hagmil.bundle import EnginePrecision, Profile
from hagmil.export.backbones import resnet, tiny
from hagmil.export.backbones.encoder import PatchEncoder, TorchBackbone
from hagmil.export.parity.stages import stage_graph
from hagmil.export.stage_half_precision import ReducedPrecision
from hagmil.export.tracing import trace
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS, PATCHES, Kind
from hagmil.trainer.models.hmil import HierarchicalMil
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from tests.export.checkpoints import SMALL

BATCH = Range(1, 16, 64)
BAGS = (Range(1, 3_000, 10_000),)


@dataclass(frozen=True, slots=True)
class Example:
    """A model to build an engine of.

    Args:
        module: the model, with random weights.
        export: makes its graph.
        profiles: the shapes that its engine shall take.
    """

    module: nn.Module
    export: Callable[[nn.Module], onnx.ModelProto]
    profiles: tuple[Profile, ...]


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) with a class token and pre-norm blocks."""

    def __init__(self, side_px: int, token_px: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, token_px, token_px)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (side_px // token_px) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (batch, 3, side, side) to features (batch, width)."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)  # (batch, tokens, width)
        tokens = torch.cat((self.first.expand(tokens.shape[0], -1, -1), tokens), dim=1) + self.position
        features: Tensor = self.norm(self.blocks(tokens))[:, 0]  # (batch, width)
        return features


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, tokens, width) to the same shape."""
        batch, count, width = tokens.shape
        parts = self.to_qkv(self.attention_norm(tokens)).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, width/heads)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.to_out(attended.transpose(1, 2).reshape(batch, count, width))
        mixed: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return mixed


def example(name: str) -> Example:
    """Return one of :data:`EXAMPLES` with fixed weights."""
    torch.manual_seed(0)
    return EXAMPLES[name]()


def example_graph(name: str, precision: EnginePrecision) -> onnx.ModelProto:
    """Return the graph of an example in a given precision."""
    built = example(name)
    reduced = {"fp16": torch.float16, "bf16": torch.bfloat16}
    module = built.module if precision == "fp32" else ReducedPrecision(built.module, reduced[precision])
    return built.export(module.eval())


def _backbone(backbone: TorchBackbone) -> Example:
    least = {"height": backbone.least_px, "width": backbone.least_px}
    lengths = {"batch": 3, "height": backbone.native_px, "width": backbone.native_px}
    return Example(
        PatchEncoder(backbone.encoder, backbone.mean, backbone.std),
        lambda module: trace(module, BACKBONE_INPUTS, BACKBONE_OUTPUTS, example=lengths, least=least),
        (backbone_profile(backbone.native_px, BATCH),),
    )


def _transformer(side_px: int, token_px: int, width: int, heads: int, depth: int) -> Example:
    half = (0.5, 0.5, 0.5)
    patches = replace(PATCHES, axes=("batch", side_px, side_px, 3))
    return Example(
        PatchEncoder(VisionTransformer(side_px, token_px, width, heads, depth), half, half),
        lambda module: trace(module, (patches,), BACKBONE_OUTPUTS, example={"batch": 3}),
        (backbone_profile(side_px, BATCH),),
    )


def _stage(module: nn.Module, features: int, kind: Kind) -> Example:
    return Example(module, lambda given: stage_graph(given, features, kind), bag_profiles(features, BAGS))


def _iat(features: int, config: IatConfig) -> Example:
    return _stage(IntegratedAttentionTransformer(features, 2, config), features, "hag-mil")


EXAMPLES: dict[str, Callable[[], Example]] = {
    "tiny backbone": lambda: _backbone(tiny.tiny(None)),
    "resnet50-trunc": lambda: _backbone(resnet.resnet50_trunc(None)),
    "ViT, small": lambda: _transformer(32, 8, 32, 4, 2),
    "ViT-S/16, 4 blocks": lambda: _transformer(224, 16, 384, 6, 4),
    "ViT-S/16": lambda: _transformer(224, 16, 384, 6, 12),
    "IAT, small": lambda: _iat(10, SMALL),
    "IAT, 2 blocks": lambda: _iat(1024, IatConfig(widths=(1024, 1536))),
    "IAT, full": lambda: _iat(1024, IatConfig()),
    "HMIL": lambda: _stage(HierarchicalMil(1024, 3, 7), 1024, "hmil"),
}
