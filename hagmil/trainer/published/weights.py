"""Weights of the published HAG-MIL and HMIL code, brought under our names.

1. Read the file, executing nothing, and find the state dict in it: HAG-MIL's lies under ``state_dict`` of a
   PyTorch Lightning file, HMIL's is the file itself or lies under ``model_state_dict``. A ``module.`` before
   all names (data-parallel training) is dropped.
2. HAG-MIL: share the weights out to stages, ``model0.`` the finest. What the published training keeps beside
   the weights (buffers of losses and metrics) is left out.
3. Rename; list names that the published model does not have, and names that it has and the file has not.
4. Read widths, classes and blocks off the shapes, and hold every shape against the model that follows from
   them.
5. Only then read the numbers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hagmil.bundle import first_problem
from hagmil.errors import BundleError
from hagmil.spec import Kind
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.hag_mil_names import our_name, published_name
from hagmil.trainer.published.hmil_names import our_hmil_name, published_hmil_name
from hagmil.trainer.published.torch_file import StoredTensor, read_torch_file

_log = logging.getLogger(__name__)

_NAMED_AT_MOST = 20
_STAGE = re.compile(r"model(\d+)\.(.+)")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_NO_WEIGHTS = re.compile(r"(model\d+\.)?(instance_loss_fn|criterion\w*|acc|auc|f1)\.")

_Shapes = Mapping[str, tuple[int, ...]]
_Stored = dict[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A published model under our names.

    Args:
        kind: hag-mil or hmil.
        stages: a state dict a stage, coarse to fine, float32 on the CPU; HMIL has one stage.
        feature_dim: length of a patch's feature vector.
        classes: number of classes; HMIL's fine ones.
        coarse_classes: HMIL's coarse ones; None for HAG-MIL.
        config: the sizes of every stage's model.
    """

    kind: Kind
    stages: tuple[Mapping[str, Tensor], ...]
    feature_dim: int
    classes: int
    coarse_classes: int | None
    config: IatConfig | HmilConfig

    def build(self) -> list[nn.Module]:
        """The models with their weights, coarse to fine, in evaluation mode, on the CPU."""
        models = [_model(_Sizes(self.feature_dim, self.classes, self.coarse_classes, self.config)) for _ in self.stages]
        for model, state in zip(models, self.stages, strict=True):
            model.load_state_dict(state)
        return [model.eval() for model in models]


def import_published(path: Path, kind: Kind) -> ImportedModel:
    """Read a checkpoint of the published code.

    Args:
        path: the file.
        kind: whose code wrote it.

    Returns:
        The weights under our names, and the sizes that their shapes tell.

    Raises:
        BundleError: the file cannot be read, would execute something, or holds other weights than the
        published
            model; wrong and missing names are listed.
    """
    state = _state_dict(read_torch_file(path), path)  # step 1
    stages = _hag_mil_stages(state, path) if kind == "hag-mil" else {"": state}
    names = _HAG_MIL if kind == "hag-mil" else _HMIL
    renamed = {prefix: _rename(stage, prefix, names, path) for prefix, stage in stages.items()}  # step 3
    _check_names(renamed, names, path)
    sizes = {prefix: _sizes(stage, names, path) for prefix, stage in renamed.items()}  # step 4
    for prefix, stage in renamed.items():
        _check_shapes(stage, sizes[prefix], prefix, names, path)
    first, *others = sizes.values()
    if any(other != first for other in others):
        raise BundleError(f'"{path}": its stages have different sizes; one model must serve all', code="wrong_weights")
    return ImportedModel(
        kind=kind,
        stages=tuple(
            {name: stored.load().float() for name, stored in stage.items()}
            for stage in renamed.values()  # step 5
        ),
        feature_dim=first.feature_dim,
        classes=first.classes,
        coarse_classes=first.coarse_classes,
        config=first.config,
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    feature_dim: int
    classes: int
    coarse_classes: int | None
    config: IatConfig | HmilConfig


@dataclass(frozen=True, slots=True)
class _Names:
    """What differs between the two codes."""

    method: str
    ours: Callable[[str], str | None]
    published: Callable[[str], str]
    expected: Callable[[Sequence[_Shapes]], set[str]]
    sizes: Callable[[_Shapes], _Sizes]


def _state_dict(content: Any, path: Path) -> _Stored:
    """Step 1: the weights by their published names."""
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, StoredTensor) for value in content.values()):
        raise BundleError(f'"{path}" holds no state dict; save model.state_dict()', code="wrong_weights")
    strange = [str(key) for key, value in content.items() if not isinstance(value, StoredTensor)]
    if strange:
        raise BundleError(f'"{path}": no tensors in the state dict under {_listed(strange)}', code="wrong_weights")
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def _hag_mil_stages(state: _Stored, path: Path) -> dict[str, _Stored]:
    """Step 2: for each prefix, coarse to fine, the weights of its stage."""
    stages: dict[int, _Stored] = {}
    unknown: list[str] = []
    for key, stored in state.items():
        stage = _STAGE.fullmatch(key)
        if _NO_WEIGHTS.match(key):
            _log.info('"%s": %s is no weight of a model; left out', path, key)
        elif stage is None:
            unknown.append(key)
        else:
            stages.setdefault(int(stage[1]), {})[stage[2]] = stored
    if unknown or not stages:
        what = f"and not {_listed(unknown)}" if unknown else "and has none"
        raise BundleError(
            f'"{path}": a HAG-MIL checkpoint holds weights under model0., model1., … {what}',
            code="unknown_weights",
        )
    absent = sorted(set(range(max(stages) + 1)) - stages.keys())
    if absent:
        missing = ", ".join(f"model{index}." for index in absent)
        raise BundleError(f'"{path}": no weights under {missing}', code="missing_weights")
    return {f"model{index}.": stages[index] for index in sorted(stages, reverse=True)}


def _rename(stage: _Stored, prefix: str, names: _Names, path: Path) -> _Stored:
    renamed = {key: names.ours(key) for key in stage}
    unknown = [f"{prefix}{key}" for key, ours in renamed.items() if ours is None]
    if unknown:
        raise BundleError(
            f'"{path}": no weights of a published {names.method} model: {_listed(unknown)}',
            code="unknown_weights",
        )
    return {ours: stage[key] for key, ours in renamed.items() if ours is not None}


def _check_names(stages: Mapping[str, _Stored], names: _Names, path: Path) -> None:
    """The second half of step 3."""
    expected = names.expected([_shapes(stage) for stage in stages.values()])
    missing = [
        prefix + names.published(name) for prefix, stage in stages.items() for name in sorted(expected - stage.keys())
    ]
    if missing:
        raise BundleError(
            f'"{path}": weights of a published {names.method} model are missing: {_listed(missing)}',
            code="missing_weights",
        )


def _sizes(stage: _Stored, names: _Names, path: Path) -> _Sizes:
    try:
        return names.sizes(_shapes(stage))
    except ValidationError as error:
        raise BundleError(f'"{path}": no such model: {first_problem(error)}', code="wrong_weights") from error
    except ValueError as error:
        raise BundleError(f'"{path}": a weight has too few axes to read sizes off it', code="wrong_weights") from error


def _check_shapes(stage: _Stored, sizes: _Sizes, prefix: str, names: _Names, path: Path) -> None:
    """The second half of step 4."""
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in _model(sizes).state_dict().items()}
    found = _shapes(stage)
    wrong = [
        f"{prefix}{names.published(name)} is {found.get(name)} and should be {expected.get(name)}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise BundleError(f'"{path}": weights do not fit together: {_listed(wrong)}', code="wrong_weights")


def _model(sizes: _Sizes) -> nn.Module:
    if isinstance(sizes.config, IatConfig):
        return IntegratedAttentionTransformer(sizes.feature_dim, sizes.classes, sizes.config)
    return HierarchicalMil(sizes.feature_dim, sizes.coarse_classes or 0, sizes.classes, sizes.config)


def _hag_mil_names(stages: Sequence[_Shapes]) -> set[str]:
    """Names of a model with as many blocks and classes as any stage shows; they do not depend on widths."""
    blocks = {int(block[1]) for stage in stages for name in stage if (block := _BLOCK.match(name))}
    classes = [stage["classifier.weight"][0] for stage in stages if stage.get("classifier.weight")]
    with torch.device("meta"):
        model = IntegratedAttentionTransformer(
            1, max(classes, default=1), IatConfig(widths=(2,) * (max(blocks, default=0) + 1), heads=1)
        )
        return set(model.state_dict())


def _hag_mil_sizes(shapes: _Shapes) -> _Sizes:
    blocks = 1 + max(int(block[1]) for name in shapes if (block := _BLOCK.match(name)))
    first_width, feature_dim = shapes["blocks.0.project.0.weight"]
    hidden_width, _ = shapes["blocks.0.gates.hidden.weight"]
    gate_width, _ = shapes["blocks.0.gates.tanh_gate.weight"]
    heads, _, taps, _ = shapes["blocks.0.attention.value_conv.weight"]
    classes, _ = shapes["classifier.weight"]
    widths = (first_width, *(shapes[f"blocks.{index}.project.0.bias"][0] for index in range(1, blocks)))
    config = IatConfig(widths=widths, heads=heads, hidden_width=hidden_width, gate_width=gate_width, value_kernel=taps)
    return _Sizes(feature_dim, classes, None, config)


def _hmil_names(_stages: Sequence[_Shapes]) -> set[str]:
    with torch.device("meta"):
        return set(HierarchicalMil(1, 1, 1).state_dict())


def _hmil_sizes(shapes: _Shapes) -> _Sizes:
    bottleneck_width, feature_dim = shapes["extract.0.weight"]
    fine_width, _ = shapes["reduce.weight"]
    coarse_classes, coarse_gate_width = shapes["coarse_attention.score.weight"]
    classes, fine_gate_width = shapes["fine_attention.score.weight"]
    config = HmilConfig(
        bottleneck_width=bottleneck_width,
        fine_width=fine_width,
        coarse_gate_width=coarse_gate_width,
        fine_gate_width=fine_gate_width,
    )
    return _Sizes(feature_dim, classes, coarse_classes, config)


def _shapes(stage: _Stored) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in stage.items()}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


_HAG_MIL = _Names("HAG-MIL", our_name, published_name, _hag_mil_names, _hag_mil_sizes)
_HMIL = _Names("HMIL", our_hmil_name, published_hmil_name, _hmil_names, _hmil_sizes)
