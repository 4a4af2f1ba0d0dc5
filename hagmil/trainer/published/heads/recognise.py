"""Recognise the head in a file of another project and check it against our model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from hagmil._models import first_problem
from hagmil.errors import BundleError
from hagmil.trainer.models.registry import ModelSizes, model_kind
from hagmil.trainer.published.heads.attention_heads import (
    recognise_attention_deep_mil,
    recognise_clam,
    recognise_millab_attention,
    recognise_pooling,
)
from hagmil.trainer.published.heads.containers import HeadFile, read_head_file
from hagmil.trainer.published.heads.found_head import FoundHead, HeadOptions, UnusableHead
from hagmil.trainer.published.heads.transformers import (
    recognise_dsmil,
    recognise_tile_transformer,
    recognise_transmil,
)

HEAD_KINDS = ("mean", "max", "abmil", "clam-sb", "clam-mb", "transmil", "dsmil", "stamp")
"""Kinds that can be imported."""
AUTO = "auto"
_MAX_NAMES = 5


def import_head(path: Path, kind: str, options: HeadOptions | None = None) -> FoundHead:
    """Read a head of another project, executing nothing in the file.

    Args:
        path: the file, or a folder that contains it.
        kind: kind of the head, or ``auto``.
        options: what tensor shapes do not tell.

    Returns:
        The head under our names; its weights have the names and shapes of our model.

    Raises:
        BundleError: the file cannot be read, would execute something, contains no such head, or an unusable one.
    """
    file = read_head_file(path)
    try:
        found = _recognise(file, options or HeadOptions())
    except UnusableHead as error:
        raise BundleError(f'"{path}": {error}', code="wrong_weights") from error
    except ValidationError as error:
        raise BundleError(f'"{path}": invalid sizes: {first_problem(error)}', code="wrong_weights") from error
    except (KeyError, IndexError, ValueError) as error:
        raise BundleError(
            f'"{path}": weights are missing or have a wrong shape: {error}', code="wrong_weights"
        ) from error
    if found is None:
        raise BundleError(
            f'"{path}" contains no known head; its weights are {_some(sorted(file.weights))}', code="unknown_weights"
        )
    if kind not in (AUTO, found.kind) and (kind, found.kind) != ("abmil", "clam-sb"):
        raise BundleError(
            f'"{path}" contains {found.kind} ({found.why}); pass --kind {found.kind}', code="wrong_weights"
        )
    if kind == "abmil" and found.kind == "clam-sb":
        found = _without_instance_classifiers(found)
    _check_fit(found, path)
    return found


def build_head(found: FoundHead) -> nn.Module:
    """Build the model of a head with its weights, in evaluation mode, on the CPU."""
    (model,) = model_kind(found.kind).build(found.config, ModelSizes(found.feature_dim, found.classes))
    model.load_state_dict(found.weights)
    return model.eval()


def _recognise(file: HeadFile, options: HeadOptions) -> FoundHead | None:
    weights, settings = file.weights, file.settings
    return (
        recognise_clam(weights)
        or recognise_millab_attention(weights)
        or recognise_transmil(weights, settings, options)
        or recognise_dsmil(weights, settings, options)
        or recognise_tile_transformer(weights, settings, options)
        or recognise_attention_deep_mil(weights)
        or recognise_pooling(weights)
    )


def _without_instance_classifiers(found: FoundHead) -> FoundHead:
    """CLAM with one attention as ABMIL, which gives the same logits and attention."""
    weights = {key: tensor for key, tensor in found.weights.items() if not key.startswith("instance_classifiers.")}
    config = model_kind("abmil").config.model_validate(found.config.model_dump())
    return replace(found, kind="abmil", config=config, weights=weights)


def _check_fit(found: FoundHead, path: Path) -> None:
    """Compare names and shapes with those of our model."""
    sizes = ModelSizes(found.feature_dim, found.classes)
    with torch.device("meta"):
        (model,) = model_kind(found.kind).build(found.config, sizes)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    given = {name: tuple(weight.shape) for name, weight in found.weights.items()}
    wrong = [
        f"{name} is {given.get(name, 'missing')}, not {expected.get(name, 'a weight of this head')}"
        for name in sorted(expected.keys() | given.keys())
        if expected.get(name) != given.get(name)
    ]
    if wrong:
        raise BundleError(f'"{path}" does not fit {found.kind} ({found.why}): {_some(wrong)}', code="wrong_weights")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
