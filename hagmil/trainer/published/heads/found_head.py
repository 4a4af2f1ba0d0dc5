"""A recognised head, and the tools that recognisers share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hagmil._models import FrozenModel

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What tensor shapes do not tell.

    Args:
        heads: attention heads of a transformer; None: from the file, else 8.
        nystrom_rows: rows that TransMIL's attention returned; None: ``first`` for files of TransMIL itself.
        masked: the transformer of STAMP hides the class token from tiles, as versions 2.0 and 2.1 predict.
        negative_class: DSMIL was trained with bags without any of its classes; they become the first class.
    """

    heads: int | None = None
    nystrom_rows: str | None = None
    masked: bool = False
    negative_class: bool = False


@dataclass(frozen=True, slots=True)
class FoundHead:
    """A head under our names.

    Args:
        kind: kind of our model.
        why: what it was recognised by, for a person.
        config: sizes of the model.
        feature_dim: length of a feature vector.
        classes: number of classes.
        weights: by the names of our model.
        class_names: if the file contains them.
    """

    kind: str
    why: str
    config: FrozenModel
    feature_dim: int
    classes: int
    weights: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None


class UnusableHead(ValueError):
    """The head is recognised but cannot be used; the message says why."""


def renamed(weights: Weights, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename the weights that match a pattern; the others keep their names.

    Args:
        weights: by the published names.
        pairs: pattern of the beginning of a name, and its replacement; the first match applies.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = key
        for pattern, replacement in pairs:
            name, count = re.subn(rf"^{pattern}", replacement, key)
            if count:
                break
        found[name] = tensor
    return found


def indices(weights: Weights, pattern: str) -> list[int]:
    """The sorted numbers that a pattern with one group matches in the names."""
    return sorted({int(match[1]) for key in weights if (match := re.match(pattern, key))})


def stacked(weights: Weights, name: str) -> dict[str, Tensor]:
    """Join the linear layers ``name.0``, ``name.1``, ... with one output each into ``classifier``; keep the rest."""
    rest = {key: tensor for key, tensor in weights.items() if not re.match(rf"{name}\.\d+\.", key)}
    numbers = indices(weights, rf"{name}\.(\d+)\.weight")
    for part in ("weight", "bias"):
        rest[f"classifier.{part}"] = torch.cat([weights[f"{name}.{number}.{part}"] for number in numbers])
    return rest
