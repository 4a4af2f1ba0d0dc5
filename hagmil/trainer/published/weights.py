"""Import of weights of the published HAG-MIL and HMIL code.

1. Read the file, executing nothing, and find the state dict in it. For HAG-MIL it is under ``state_dict`` of a PyTorch
   Lightning file. For HMIL it is the file itself or is under ``model_state_dict``. Remove the prefix ``module.`` of
   data-parallel training.
2. HAG-MIL: assign the weights to stages; ``model0.`` is the finest. Skip what the published training saves beside the
   weights (buffers of losses and metrics).
3. Rename the weights. List names that the published model does not have, and names that are missing in the file.
4. Derive widths, classes and blocks from the shapes, and check every shape against the resulting model.
5. Check the checksums of the file, and copy the weights into memory.
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

from hagmil._models import first_problem
from hagmil.errors import BundleError
from hagmil.spec import Kind
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.hag_mil_names import our_name, published_name
from hagmil.trainer.published.hmil_names import our_hmil_name, published_hmil_name
from hagmil.trainer.published.torch_file import check_checksums, copy_tensor, read_torch_file

_log = logging.getLogger(__name__)

_MAX_NAMES = 20
_STAGE = re.compile(r"model(\d+)\.(.+)")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_NO_WEIGHTS = re.compile(r"(model\d+\.)?(instance_loss_fn|criterion\w*|acc|auc|f1)\.")

_Shapes = Mapping[str, tuple[int, ...]]
_State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A published model under our names.

    Args:
        kind: hag-mil or hmil.
        stages: one state dict per stage, coarse to fine, float32 on the CPU; HMIL has one stage.
        feature_dim: length of a feature vector.
        classes: number of classes; for HMIL, of fine classes.
        coarse_classes: number of coarse classes of HMIL; None for HAG-MIL.
        config: sizes of the model of each stage.
    """

    kind: Kind
    stages: tuple[Mapping[str, Tensor], ...]
    feature_dim: int
    classes: int
    coarse_classes: int | None
    config: IatConfig | HmilConfig

    def build(self) -> list[nn.Module]:
        """Build the models with their weights, coarse to fine, in evaluation mode, on the CPU."""
        models = [_model(_Sizes(self.feature_dim, self.classes, self.coarse_classes, self.config)) for _ in self.stages]
        for model, state in zip(models, self.stages, strict=True):
            model.load_state_dict(state)
        return [model.eval() for model in models]


def import_published(path: Path, kind: Kind) -> ImportedModel:
    """Read a checkpoint of the published code.

    Args:
        path: the file.
        kind: which published code wrote it.

    Returns:
        The weights under our names, and the sizes derived from their shapes.

    Raises:
        BundleError: the file cannot be read, would execute something, or holds other weights than the published
            model; the message lists wrong and missing names.
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
        raise BundleError(f'"{path}": the models of its stages have different sizes', code="wrong_weights")
    check_checksums(path)  # step 5
    return ImportedModel(
        kind=kind,
        stages=tuple(
            {name: copy_tensor(weight, path).float() for name, weight in stage.items()} for stage in renamed.values()
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
    """What differs between the two published codes."""

    method: str
    ours: Callable[[str], str | None]
    published: Callable[[str], str]
    expected: Callable[[Sequence[_Shapes]], set[str]]
    sizes: Callable[[_Shapes], _Sizes]


def _state_dict(content: Any, path: Path) -> _State:
    """Step 1: published name to weight."""
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise BundleError(f'"{path}" holds no state dict; save model.state_dict()', code="wrong_weights")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise BundleError(
            f'"{path}": the state dict holds other objects than tensors: {_first_names(others)}', code="wrong_weights"
        )
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def _hag_mil_stages(state: _State, path: Path) -> dict[str, _State]:
    """Step 2: prefix to the weights of its stage, coarse to fine."""
    stages: dict[int, _State] = {}
    unknown: list[str] = []
    for key, weight in state.items():
        stage = _STAGE.fullmatch(key)
        if _NO_WEIGHTS.match(key):
            _log.info('"%s": skipped %s, which is not a weight of a model', path, key)
        elif stage is None:
            unknown.append(key)
        else:
            stages.setdefault(int(stage[1]), {})[stage[2]] = weight
    if unknown or not stages:
        found = f"this one also holds {_first_names(unknown)}" if unknown else "this one holds none"
        raise BundleError(
            f'"{path}": all weights of a HAG-MIL checkpoint are under model0., model1., …; {found}',
            code="unknown_weights",
        )
    absent = sorted(set(range(max(stages) + 1)) - stages.keys())
    if absent:
        missing = ", ".join(f"model{index}." for index in absent)
        raise BundleError(f'"{path}": no weights under {missing}', code="missing_weights")
    return {f"model{index}.": stages[index] for index in sorted(stages, reverse=True)}


def _rename(stage: _State, prefix: str, names: _Names, path: Path) -> _State:
    renamed = {key: names.ours(key) for key in stage}
    unknown = [f"{prefix}{key}" for key, ours in renamed.items() if ours is None]
    if unknown:
        raise BundleError(
            f'"{path}": unknown names of weights for a published {names.method} model: {_first_names(unknown)}',
            code="unknown_weights",
        )
    return {ours: stage[key] for key, ours in renamed.items() if ours is not None}


def _check_names(stages: Mapping[str, _State], names: _Names, path: Path) -> None:
    """The second half of step 3."""
    expected = names.expected([_shapes(stage) for stage in stages.values()])
    missing = [
        prefix + names.published(name) for prefix, stage in stages.items() for name in sorted(expected - stage.keys())
    ]
    if missing:
        raise BundleError(
            f'"{path}": weights of a published {names.method} model are missing: {_first_names(missing)}',
            code="missing_weights",
        )


def _sizes(stage: _State, names: _Names, path: Path) -> _Sizes:
    try:
        return names.sizes(_shapes(stage))
    except ValidationError as error:
        raise BundleError(f'"{path}": invalid sizes: {first_problem(error)}', code="wrong_weights") from error
    except ValueError as error:
        raise BundleError(f'"{path}": a weight has the wrong number of axes', code="wrong_weights") from error


def _check_shapes(stage: _State, sizes: _Sizes, prefix: str, names: _Names, path: Path) -> None:
    """The second half of step 4."""
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in _model(sizes).state_dict().items()}
    found = _shapes(stage)
    wrong = [
        f"{prefix}{names.published(name)} is {found.get(name)} but should be {expected.get(name)}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise BundleError(f'"{path}": inconsistent shapes: {_first_names(wrong)}', code="wrong_weights")


def _model(sizes: _Sizes) -> nn.Module:
    if isinstance(sizes.config, IatConfig):
        return IntegratedAttentionTransformer(sizes.feature_dim, sizes.classes, sizes.config)
    return HierarchicalMil(sizes.feature_dim, sizes.coarse_classes or 0, sizes.classes, sizes.config)


def _hag_mil_names(stages: Sequence[_Shapes]) -> set[str]:
    """Names of the weights of a model with the largest number of blocks and classes of any stage."""
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


def _shapes(stage: _State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in stage.items()}


def _first_names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


_HAG_MIL = _Names("HAG-MIL", our_name, published_name, _hag_mil_names, _hag_mil_sizes)
_HMIL = _Names("HMIL", our_hmil_name, published_hmil_name, _hmil_names, _hmil_sizes)
