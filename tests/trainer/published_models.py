"""The conformance rule: weights and inputs of the published models, made again from their names."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.hag_mil_names import published_to_ours


@dataclass(frozen=True, slots=True)
class Official:
    """What the published implementations were, and what they gave."""

    said: dict[str, Any]
    gave: dict[str, NDArray[Any]]


def load_official(folder: Path) -> Official:
    with np.load(folder / "official.npz") as stored:
        gave = {key: stored[key] for key in stored.files}
    return Official(json.loads((folder / "official.json").read_text()), gave)


def weights(official: Official, model: str, salt: str) -> dict[str, Tensor]:
    """The published state dict of one model."""
    state = official.said[model]["state"]
    return {key: _weight(official, key, shape, salt) for key, shape in state.items()}


def features(patches: int, dim: int, salt: str) -> Tensor:
    generator = _generator(f"{salt}:features:{patches}:{dim}")
    centres = generator.random((12, dim)) ** 6 * 2
    chosen = generator.integers(0, 12, patches)
    rows = centres[chosen] * (0.5 + generator.random((patches, dim))) + 0.05 * generator.random((patches, dim))
    return torch.from_numpy(rows.astype(np.float32))


def stage_model(official: Official, model: str, salt: str) -> IntegratedAttentionTransformer:
    """Our transformer with the published weights, in evaluation mode."""
    config = official.said[model]["config"]
    ours = IntegratedAttentionTransformer(
        config["feat_in"], config["n_classes"], IatConfig(widths=tuple(config["hidden_dims"]))
    )
    ours.load_state_dict(published_to_ours(weights(official, model, salt)))
    return ours.eval()


def _weight(official: Official, key: str, shape: list[int], salt: str) -> Tensor:
    if key.endswith("omega"):
        return torch.full(shape, official.said["omega"])
    values = _generator(f"{salt}:{key}").standard_normal(shape)
    if len(shape) == 1:
        values = values * 0.1 + (1.0 if key.endswith("weight") else 0.0)
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    gain = official.said["qkv_gain"] if "to_qkv" in key else 1.0
    return torch.from_numpy(values.astype(np.float32) * np.float32(gain))


def _generator(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode())))
