"""Weights and inputs of the published models, generated from their names by the rule of the conformance data."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.hag_mil_names import our_name
from hagmil.trainer.published.hmil_names import our_hmil_name


@dataclass(frozen=True, slots=True)
class PublishedReference:
    """The reference data of the published implementations.

    Args:
        settings: ``official.json``: sizes, names and shapes of weights, and constants.
        outputs: ``official.npz``: what the published code computes.
    """

    settings: dict[str, Any]
    outputs: dict[str, NDArray[Any]]


def load_reference(folder: Path) -> PublishedReference:
    with np.load(folder / "official.npz") as stored:
        outputs = {key: stored[key] for key in stored.files}
    return PublishedReference(json.loads((folder / "official.json").read_text()), outputs)


def weights(reference: PublishedReference, model: str, salt: str) -> dict[str, Tensor]:
    """The published state dict of one model."""
    state = reference.settings[model]["state"]
    return {key: _weight(reference, key, shape, salt) for key, shape in state.items()}


def features(patches: int, dim: int, salt: str) -> Tensor:
    source = generator(f"{salt}:features:{patches}:{dim}")
    centres = source.random((12, dim)) ** 6 * 2
    chosen = source.integers(0, 12, patches)
    rows = centres[chosen] * (0.5 + source.random((patches, dim))) + 0.05 * source.random((patches, dim))
    return torch.from_numpy(rows.astype(np.float32))


def stage_model(reference: PublishedReference, model: str, salt: str) -> IntegratedAttentionTransformer:
    """Our transformer with the published weights, in evaluation mode."""
    config = reference.settings[model]["config"]
    ours = IntegratedAttentionTransformer(
        config["feat_in"], config["n_classes"], IatConfig(widths=tuple(config["hidden_dims"]))
    )
    ours.load_state_dict(published_to_ours(weights(reference, model, salt)))
    return ours.eval()


def published_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one published HAG-MIL stage model under our names."""
    return _renamed(state, our_name)


def published_hmil_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a published HMIL model under our names."""
    return _renamed(state, our_hmil_name)


def _renamed(state: Mapping[str, Tensor], our_name_of: Callable[[str], str | None]) -> dict[str, Tensor]:
    names = {published: our_name_of(published) for published in state}
    return {ours: state[published] for published, ours in names.items() if ours is not None}


def _weight(reference: PublishedReference, key: str, shape: list[int], salt: str) -> Tensor:
    if key.endswith("omega"):
        return torch.full(shape, reference.settings["omega"])
    values = generator(f"{salt}:{key}").standard_normal(shape)
    if len(shape) == 1:
        values = values * 0.1 + (1.0 if key.endswith("weight") else 0.0)
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    gain = reference.settings["qkv_gain"] if "to_qkv" in key else 1.0
    return torch.from_numpy(values.astype(np.float32) * np.float32(gain))


def generator(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode())))
