"""Weights, layouts and outputs of published heads, made from names by the rule of the conformance data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.trainer.published_models import generator


@dataclass(frozen=True, slots=True)
class PublishedHeads:
    """Reference data of published heads.

    Args:
        configs: for each configuration: head, sizes, and shapes of its weights.
        layouts: for each head: names of other versions of its code.
        outputs: ``<configuration>_<patches>_<name>``.
    """

    configs: Mapping[str, Any]
    layouts: Mapping[str, Any]
    outputs: Mapping[str, NDArray[Any]]

    def output(self, config: str, patches: int, name: str) -> NDArray[Any] | None:
        """One output; None if it is not stored."""
        return self.outputs.get(f"{config}_{patches}_{name}")

    def weights(self, config: str) -> dict[str, Tensor]:
        """The published state dict."""
        return {key: _weight(config, key, shape) for key, shape in self.configs[config]["state"].items()}


def load_heads(folder: Path) -> PublishedHeads:
    with np.load(folder / "heads.npz") as stored:
        outputs = {key: stored[key] for key in stored.files}
    found = json.loads((folder / "heads.json").read_text())
    return PublishedHeads(found["configs"], found["layouts"], outputs)


def in_layout(weights: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same weights under the names of another version of the code."""
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if any(key.startswith(part) for part in layout.get("drop", ())):
            continue
        split = next((part for part in layout.get("split", {}) if key.startswith(f"{part}.")), None)
        if split is not None:
            last = key.rpartition(".")[2]
            found |= {f"{layout['split'][split]}.{row}.{last}": tensor[row : row + 1] for row in range(len(tensor))}
            continue
        first = next((pair for pair in layout.get("rename", ()) if key.startswith(pair[0])), None)
        found[key if first is None else first[1] + key.removeprefix(first[0])] = tensor
    found |= {key: torch.tensor(value) for key, value in layout.get("extra", {}).items()}
    return {layout.get("prefix", "") + key: tensor for key, tensor in found.items()}


def _weight(config: str, key: str, shape: list[int]) -> Tensor:
    values = generator(f"hagmil-heads-{config}:{key}").standard_normal(shape)
    if len(shape) == 1:
        values = values * 0.1 + (1.0 if re.search(r"weight$", key) else 0.0)
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))
