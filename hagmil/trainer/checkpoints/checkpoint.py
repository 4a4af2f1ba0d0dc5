"""Checkpoints: one safetensors file that is whole in itself, and its card beside it as JSON.

A checkpoint folder holds ``model.safetensors`` and ``checkpoint.json``. The weights file's header carries the
card too, and that copy is the one that is read: so weights and card appear together or not at all, whenever a
run is killed. ``checkpoint.json`` is the same card for people and other tools. A run's last checkpoint also
holds the optimisers' state (tensors ``optimisers.…``) and, in the header, how far the run has come.
Everything is safetensors or JSON: reading a checkpoint executes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hagmil._files import atomic_path, write_text
from hagmil._models import FrozenModel
from hagmil.bundle import Hierarchy
from hagmil.errors import BundleError
from hagmil.spec import Kind
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.metrics.classification import ClassificationMetrics
from hagmil.trainer.models.build import ModelConfig, cascade_models, hmil_model
from hagmil.trainer.models.hmil import HmilConfig

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "checkpoint.json"
BEST = Path("checkpoints/best")
LAST = Path("checkpoints/last")

_log = logging.getLogger(__name__)
_CARD_KEY = "checkpoint"
_STATE_KEY = "training_state"


class CheckpointStage(FrozenModel):
    """One stage: its spacing, and how many patches it keeps for the next."""

    name: str
    spacing_um: float = Field(gt=0)
    keep: int | None = Field(ge=1, description="patches kept in deployment; null on the last stage")


class CheckpointBackbone(FrozenModel):
    """The patch encoder whose features the models were trained on."""

    name: str
    sha256: str = Field(description="digest of its ONNX file")
    proven: bool = Field(default=True, description="false: somebody said so when the checkpoint was imported")


class TrainingRecord(FrozenModel):
    """Where the weights came from."""

    versions: dict[str, str] = Field(description="versions of the packages that took part")
    seed: int
    recipe_sha256: str = Field(description="digest of the configuration without paths, device, threads and the like")
    labels_sha256: str
    split_sha256: str
    features_sha256: str
    train_slides: int
    epoch: int = Field(description="epochs that these weights have seen in full")
    validation: ClassificationMetrics | None = Field(description="of these weights; null before any epoch's end")


class ImportRecord(FrozenModel):
    """The file of the published code that weights were imported from."""

    versions: dict[str, str] = Field(description="versions of the packages that took part")
    source_name: str
    source_sha256: str


class CheckpointCard(FrozenModel):
    """``checkpoint.json``: everything that an export needs to know of the weights."""

    format: Literal["hagmil-checkpoint"] = "hagmil-checkpoint"
    format_version: Literal[1] = 1
    hagmil: str = Field(description="version of hagmil that wrote it")
    kind: Kind
    classes: tuple[str, ...] = Field(min_length=2, description="of the verdict, in the order of its logits")
    hierarchy: Hierarchy | None = Field(default=None, description="null where labels have one layer")
    patch_px: int = Field(ge=1)
    stages: tuple[CheckpointStage, ...] = Field(min_length=1, description="coarse to fine")
    feature_dim: int = Field(ge=1)
    model: ModelConfig
    backbone: CheckpointBackbone | None = Field(description="null where nobody knows which it was")
    tissue: TissueParameters
    weights_sha256: str = Field(description="digest over names, shapes and values of the models' weights")
    training: TrainingRecord | None = Field(default=None, description="null where the weights were imported")
    imported: ImportRecord | None = Field(default=None, description="null where the weights were trained here")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> CheckpointCard:
        if any((stage.keep is None) != (stage is self.stages[-1]) for stage in self.stages):
            raise ValueError("keep must be null on the last stage and a number on all others")
        if self.hierarchy is not None and self.hierarchy.fine != self.classes:
            raise ValueError("classes must be the hierarchy's fine classes")
        if (self.kind == "hmil") != isinstance(self.model, HmilConfig):
            raise ValueError(f"these are no sizes of a model of kind {self.kind}")
        if self.kind == "hmil" and (self.hierarchy is None or len(self.stages) != 1):
            raise ValueError("kind hmil has a hierarchy and one stage")
        if (self.training is None) == (self.imported is None):
            raise ValueError("either training or imported must be given")
        return self

    def origin(self) -> dict[str, Any]:
        """Where the weights came from, as JSON has it: the training record, or the import record."""
        record = self.training or self.imported
        assert record is not None  # the card was checked
        return record.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found and whose card was read.

    Args:
        weights_path: its safetensors file.
        card: what it says of itself.
    """

    weights_path: Path
    card: CheckpointCard


def load_checkpoint(path: Path) -> Checkpoint:
    """Find a checkpoint and read its card; the weights are read by :func:`build_models`.

    Args:
        path: a checkpoint folder, its weights file, or a run folder (then its best checkpoint).

    Raises:
        BundleError: there is none, or it is damaged.
    """
    candidates = [path] if path.is_file() else [path / WEIGHTS_NAME, path / BEST / WEIGHTS_NAME]
    weights_path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if weights_path is None:
        raise BundleError(f'no checkpoint in "{path}": it has no {WEIGHTS_NAME}', code="checkpoint_missing")
    text = _header(weights_path).get(_CARD_KEY)
    if text is None:
        raise BundleError(f'"{weights_path}" is no checkpoint of hagmil', code="checkpoint_invalid")
    try:
        card = CheckpointCard.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f'checkpoint "{weights_path}" is not valid: {error}', code="checkpoint_invalid") from error
    beside = weights_path.with_name(CARD_NAME)
    if beside.is_file() and beside.read_text(encoding="utf-8") != _pretty(card):
        _log.warning('"%s" is not what the weights file beside it says; the weights file is followed', beside)
    return Checkpoint(weights_path, card)


def build_models(checkpoint: Checkpoint) -> list[nn.Module]:
    """The models of a checkpoint with their weights, in evaluation mode, on the CPU.

    Args:
        checkpoint: of either kind.

    Returns:
        A model a stage, coarse to fine.

    Raises:
        BundleError: the weights are damaged, altered, or not those of the card's models.
    """
    card = checkpoint.card
    models = _empty_models(card)
    tensors = _tensors(checkpoint.weights_path, "stages.")
    if _digest(tensors) != card.weights_sha256:
        raise BundleError(
            f'checkpoint "{checkpoint.weights_path}": the weights are not those that its card speaks of',
            code="checkpoint_altered",
        )
    _fill(models, tensors, checkpoint.weights_path)
    return [model.eval() for model in models]


def weights_sha256(models: Sequence[nn.Module]) -> str:
    """Digest over names, shapes and values of all weights of the models, coarse to fine."""
    return _digest(_weights(models))


def write_checkpoint(
    folder: Path,
    card: CheckpointCard,
    models: Sequence[nn.Module],
    *,
    optimisers: Sequence[Optimizer] = (),
    training_state: str | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: the folder; made if it is missing.
        card: what the checkpoint says of itself.
        models: coarse to fine.
        optimisers: whose state goes with it, so that the training can go on.
        training_state: JSON that says how far the training has come.
    """
    tensors = _weights(models)
    for index, optimiser in enumerate(optimisers):
        tensors.update(_optimiser_tensors(optimiser, f"optimisers.{index}."))
    header = {_CARD_KEY: card.model_dump_json()}
    if training_state is not None:
        header[_STATE_KEY] = training_state
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(tensors, temporary, metadata=header)
    write_text(folder / CARD_NAME, _pretty(card))


def read_training_state(folder: Path) -> str:
    """How far the training had come when a checkpoint was written: the JSON that was given to it.

    Raises:
        BundleError: the checkpoint is missing, damaged, or not one to go on from.
    """
    state = _header(folder / WEIGHTS_NAME).get(_STATE_KEY)
    if state is None:
        raise BundleError(f'checkpoint "{folder}" holds no state to resume from', code="checkpoint_invalid")
    return state


def restore(folder: Path, models: Sequence[nn.Module], optimisers: Sequence[Optimizer] = ()) -> None:
    """Bring models, and optimisers if any are given, to a checkpoint's state.

    Raises:
        BundleError: the checkpoint is damaged, or of other models.
    """
    path = folder / WEIGHTS_NAME
    _fill(models, _tensors(path, "stages."), path)
    for index, optimiser in enumerate(optimisers):
        _fill_optimiser(optimiser, _tensors(path, f"optimisers.{index}."))


def _empty_models(card: CheckpointCard) -> list[nn.Module]:
    if isinstance(card.model, HmilConfig):
        assert card.hierarchy is not None  # the card was checked
        return [hmil_model(card.model, feature_dim=card.feature_dim, hierarchy=card.hierarchy)]
    return list(
        cascade_models(
            card.model,
            feature_dim=card.feature_dim,
            classes=len(card.classes),
            hierarchy=card.hierarchy,
            stages=len(card.stages),
        )
    )


def _pretty(card: CheckpointCard) -> str:
    return card.model_dump_json(indent=2) + "\n"


def _weights(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    return {
        f"stages.{index}.{name}": tensor.detach().cpu().contiguous()
        for index, model in enumerate(models)
        for name, tensor in model.state_dict().items()
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _fill(models: Sequence[nn.Module], tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = {f"stages.{index}.{name}" for index, model in enumerate(models) for name in model.state_dict()}
    wrong = sorted(expected ^ tensors.keys())
    if wrong:
        raise BundleError(
            f'checkpoint "{path}" has other weights than its models: {", ".join(wrong[:5])}'
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            code="checkpoint_invalid",
        )
    for index, model in enumerate(models):
        prefix = f"stages.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            model.load_state_dict(own)
        except RuntimeError as error:
            raise BundleError(f'checkpoint "{path}", stage {index}: {error}', code="checkpoint_invalid") from error


def _optimiser_tensors(optimiser: Optimizer, prefix: str) -> dict[str, Tensor]:
    """The state of each parameter that has one, named ``<prefix><place of the parameter>.<name>``."""
    state: Mapping[int, Mapping[str, Tensor]] = optimiser.state_dict()["state"]
    return {
        f"{prefix}{place}.{name}": tensor.detach().cpu().contiguous()
        for place, values in state.items()
        for name, tensor in values.items()
    }


def _fill_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        place, name = key.split(".")[-2:]
        state.setdefault(int(place), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BundleError(f'checkpoint "{path}" cannot be read: {error}', code="checkpoint_unreadable") from error


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Copies of all tensors whose names begin so; the file may be replaced while they live."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: torch.clone(file.get_tensor(name)) for name in names}
    except (OSError, SafetensorError) as error:
        raise BundleError(f'checkpoint "{path}" cannot be read: {error}', code="checkpoint_unreadable") from error
