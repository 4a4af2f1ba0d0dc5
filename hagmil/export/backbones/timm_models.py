"""timm models as backbones, if timm is installed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hagmil._optional import require
from hagmil.errors import BundleError, EnvironmentLacks, UsageError
from hagmil.export.backbones.encoder import Channels, TorchBackbone
from hagmil.export.backbones.weights import describe_file, load_exactly, read_weights

PREFIX = "timm:"
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
_SEED = 0
_LEAST_PX = 64  # twice the largest stride of timm models; with less, the last feature map has one element


def timm_backbone(name: str, weights: str, *, patch_px: int | None) -> TorchBackbone:
    """Return a timm model without its classifier.

    Args:
        name: timm's name, for example ``vit_small_patch16_224.augreg_in21k`` or ``hf-hub:OWNER/NAME``.
        weights: ``hub`` for the weights that timm downloads, ``random``, or a file.
        patch_px: patch size in pixels, for models with a fixed size; None for the size of the model.

    Raises:
        EnvironmentLacks: timm, or a package that it needs, is not installed.
        UsageError: timm has no such model or no weights for it, or the model cannot take ``patch_px``.
        BundleError: the weights file is refused or does not fit, or the model does not return feature vectors.
    """
    timm = _timm()
    if not name.startswith(_HUB_PREFIXES) and not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:5])
        raise UsageError(f'timm has no model "{name}"' + (f"; similar: {near}" if near else ""), code="no_backbone")
    model = _create(timm, name, pretrained=weights == "hub")
    model.eval()
    settings: dict[str, Any] = model.pretrained_cfg
    description = _load(model, weights, settings)
    native_px = _square(settings["input_size"], name)
    side_px = patch_px or native_px
    fixed = bool(settings.get("fixed_input_size"))
    if fixed and side_px != native_px:
        _resize(model, name, side_px)
    features = _feature_length(model, name, side_px)
    return TorchBackbone(
        name=f"{PREFIX}{name}",
        encoder=model,
        features=features,
        mean=_channels(settings["mean"]),
        std=_channels(settings["std"]),
        weights=description,
        patch_px=side_px if fixed else None,
        least_px=min(_LEAST_PX, side_px),
        native_px=side_px,
    )


def timm_is_installed() -> bool:
    """Return whether timm and its requirements can be imported."""
    try:
        _timm()
    except EnvironmentLacks:
        return False
    return True


def _timm() -> ModuleType:
    try:
        return require("timm", extra="timm")
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            f'timm needs package "{error.name}", which is not installed; run: pip install {error.name}',
            code="package_missing",
        ) from error


def _create(timm: ModuleType, name: str, *, pretrained: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
        except RuntimeError as error:
            if not pretrained:
                raise
            raise UsageError(f'timm cannot load weights of "{name}": {error}', code="weights_missing") from error


def _load(model: nn.Module, weights: str, settings: dict[str, Any]) -> str:
    """Load weights from a file, if one is given, and return a description of the weights."""
    if weights == "hub":
        return f"hub: {settings.get('hf_hub_id') or settings.get('url')}"
    if weights == "random":
        return f"random, seed {_SEED}"
    classifier = settings.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    load_exactly(model, read_weights(Path(weights)), ignored=tuple(f"{head}." for head in heads))
    return describe_file(Path(weights))


def _resize(model: Any, name: str, patch_px: int) -> None:
    if not hasattr(model, "set_input_size"):
        raise UsageError(f'"{name}" has a fixed patch size; remove --patch-px', code="patch_px")
    model.set_input_size(img_size=(patch_px, patch_px))


def _feature_length(model: Any, name: str, side_px: int) -> int:
    try:
        with torch.inference_mode():
            features: Tensor = model(torch.zeros(1, 3, side_px, side_px))
    except AssertionError as error:
        raise UsageError(f'"{name}" cannot take patches of {side_px} pixels: {error}', code="patch_px") from error
    if features.ndim != 2:
        raise BundleError(
            f'"{name}" returns {tuple(features.shape)} instead of one feature vector per patch',
            code="no_feature_vector",
        )
    return int(features.shape[1])


def _square(input_size: tuple[int, int, int], name: str) -> int:
    channels, height, width = input_size
    if channels != 3 or height != width:
        raise UsageError(f'"{name}" takes input of size {input_size} instead of square RGB patches', code="patch_px")
    return int(height)


def _channels(values: tuple[float, ...]) -> Channels:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
