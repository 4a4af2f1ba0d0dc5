"""Checkpoints: one safetensors file with weights and card, and a copy of the card as JSON.

A checkpoint folder contains ``model.safetensors`` and ``checkpoint.json``. The card is also in the header of the
weights file, and this copy is the one that is read. Weights and card are therefore consistent even if a run is killed
while it writes. ``checkpoint.json`` is for people and other tools. The last checkpoint of a run also contains the
states of the optimisers (tensors ``optimisers.…``) and, in the header, the state of the training. Reading a checkpoint
executes nothing, because all of it is safetensors or JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hagmil._files import atomic_path, write_text
from hagmil._models import FrozenModel, Within, first_problem, read_json
from hagmil.bundle import Certainty, Hierarchy, Tested
from hagmil.errors import BundleError, UsageError, one_line
from hagmil.spec import (
    LARGEST_PATCH_PX,
    MOST_STAGES,
    AttentionForm,
    ClassNames,
    Count,
    FeatureLength,
    Kind,
    PatchCount,
    Readout,
    SpacingUm,
)
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.metrics.classification import ClassificationMetrics
from hagmil.trainer.models.iat import IatConfig
from hagmil.trainer.models.registry import ModelSizes, model_kind

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "checkpoint.json"
BEST = Path("checkpoints/best")
LAST = Path("checkpoints/last")

_log = logging.getLogger(__name__)
_CARD_KEY = "checkpoint"
_STATE_KEY = "training_state"


class CheckpointStage(FrozenModel):
    """A stage: its spacing, and the number of patches that it keeps for the next."""

    name: str
    spacing_um: SpacingUm
    keep: PatchCount | None = Field(description="patches kept in deployment; null for the last stage")


class CheckpointBackbone(FrozenModel):
    """The backbone of the features that the models were trained on."""

    name: str
    sha256: str = Field(description="digest of its ONNX file")
    proven: bool = Field(default=True, description="false: given by the user at import and not verified")


class TrainingRecord(FrozenModel):
    """The training that the weights come from."""

    versions: dict[str, str] = Field(description="versions of the packages")
    seed: Count
    recipe_sha256: str = Field(description="digest of the configuration without paths, device and threads")
    labels_sha256: str
    split_sha256: str
    features_sha256: str
    train_slides: Count
    epoch: Count = Field(description="complete epochs of training of these weights")
    validation: ClassificationMetrics | None = Field(
        description="metrics of these weights; null before the end of the first epoch"
    )


class ImportRecord(FrozenModel):
    """The file of the published code from which the weights were imported."""

    versions: dict[str, str] = Field(description="versions of the packages")
    source_name: str
    source_sha256: str
    recognised_by: str | None = Field(default=None, description="what a head was recognised by; null for others")


class CheckpointCard(FrozenModel):
    """``checkpoint.json``: the metadata of the weights."""

    format: Literal["hagmil-checkpoint"] = "hagmil-checkpoint"
    format_version: Literal[1] = 1
    hagmil: str = Field(description="version of hagmil that wrote the checkpoint")
    kind: Kind
    classes: ClassNames = Field(description="names of the classes in the order of the logits")
    hierarchy: Hierarchy | None = Field(default=None, description="null if the labels have one layer")
    patch_px: Annotated[int, Within(1, LARGEST_PATCH_PX)]
    stages: tuple[CheckpointStage, ...] = Field(min_length=1, max_length=MOST_STAGES, description="coarse to fine")
    feature_dim: FeatureLength
    model: SerializeAsAny[FrozenModel]
    backbone: CheckpointBackbone | None = Field(description="null if unknown")
    tissue: TissueParameters
    weights_sha256: str = Field(description="digest of names, types, shapes and values of the weights")
    tested: Tested | None = Field(
        default=None, description="verdicts of the validation slides by number of kept patches; null if not tested"
    )
    certainty: Certainty | None = Field(
        default=None,
        description="when the adaptive cascade calls a verdict sure, from the same slides; null if unknown",
    )
    training: TrainingRecord | None = Field(default=None, description="null if the weights were imported")
    imported: ImportRecord | None = Field(default=None, description="null if the weights were trained by hagmil")

    @field_validator("model", mode="before")
    @classmethod
    def _of_kind(cls, value: object, info: ValidationInfo) -> FrozenModel:
        """Validate the sizes of the models as those of the kind."""
        kind = info.data.get("kind")
        if kind is None:
            raise ValueError("there is no kind")
        try:
            config = model_kind(kind).config
        except UsageError as error:
            raise ValueError(error.message) from error
        return value if isinstance(value, config) else config.model_validate(value)

    @model_validator(mode="after")
    def _check_consistency(self) -> CheckpointCard:
        if any((stage.keep is None) != (stage is self.stages[-1]) for stage in self.stages):
            raise ValueError("keep must be null for the last stage and a number for all others")
        if self.hierarchy is not None and self.hierarchy.fine != self.classes:
            raise ValueError("classes must be the hierarchy's fine classes")
        if self.kind == "hmil" and (self.hierarchy is None or len(self.stages) != 1):
            raise ValueError("kind hmil needs a hierarchy and exactly one stage")
        if self.kind not in ("hag-mil", "hmil") and (self.hierarchy is not None or len(self.stages) != 1):
            raise ValueError(f"kind {self.kind} needs exactly one stage and no hierarchy")
        if (self.training is None) == (self.imported is None):
            raise ValueError("exactly one of training and imported must be given")
        return self

    @property
    def readout(self) -> Readout:
        """Read-out of the stage models."""
        return self.model.readout if isinstance(self.model, IatConfig) else "pooled"

    @property
    def attention(self) -> AttentionForm:
        """Form of the attention of the stage models."""
        return model_kind(self.kind).attention

    def origin(self) -> dict[str, Any]:
        """The training record or the import record, as JSON values."""
        record = self.training or self.imported
        assert record is not None  # checked by the validator
        return record.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose card was read.

    Args:
        weights_path: its safetensors file.
        card: its metadata.
    """

    weights_path: Path
    card: CheckpointCard


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the card of a checkpoint; :func:`build_models` reads the weights.

    Args:
        path: a checkpoint folder, its weights file, or a run folder (for its best checkpoint).

    Raises:
        BundleError: the checkpoint is missing or damaged.
    """
    candidates = [path] if path.is_file() else [path / WEIGHTS_NAME, path / BEST / WEIGHTS_NAME]
    weights_path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if weights_path is None:
        raise BundleError(f'no checkpoint in "{path}": it has no {WEIGHTS_NAME}', code="checkpoint_missing")
    text = _header(weights_path).get(_CARD_KEY)
    if text is None:
        raise BundleError(f'"{weights_path}" is not a checkpoint of hagmil', code="checkpoint_invalid")
    try:
        card = read_json(CheckpointCard, text)
    except ValueError as error:
        raise BundleError(
            f'checkpoint "{weights_path}" is not valid: {first_problem(error)}', code="checkpoint_invalid"
        ) from error
    beside = weights_path.with_name(CARD_NAME)
    if beside.is_file() and not _same_json(beside.read_bytes(), text):
        _log.warning('"%s" differs from the card in the weights file, which is used', beside)
    return Checkpoint(weights_path, card)


def build_models(checkpoint: Checkpoint) -> list[nn.Module]:
    """Build the models of a checkpoint with their weights, in evaluation mode, on the CPU.

    Args:
        checkpoint: of either kind.

    Returns:
        One model per stage, coarse to fine.

    Raises:
        BundleError: the weights are damaged or altered, or do not fit the models.
    """
    card = checkpoint.card
    tensors = _tensors(checkpoint.weights_path, "stages.")
    if _digest(tensors) != card.weights_sha256:
        raise BundleError(
            f'checkpoint "{checkpoint.weights_path}": the weights do not have the digest in the card',
            code="checkpoint_altered",
        )
    _check_sizes(card, tensors, checkpoint.weights_path)
    models = _empty_models(card)
    _fill(models, tensors, checkpoint.weights_path)
    return [model.eval() for model in models]


def weights_sha256(models: Sequence[nn.Module]) -> str:
    """Digest of names, types, shapes and values of all weights of the models, coarse to fine."""
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
        folder: the folder; created if it is missing.
        card: metadata of the checkpoint.
        models: coarse to fine.
        optimisers: their states are written too, so that the training can be resumed.
        training_state: state of the training as JSON.
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
    """Read the state of the training from a checkpoint, as JSON.

    Raises:
        BundleError: the checkpoint is missing or damaged, or contains no state.
    """
    state = _header(folder / WEIGHTS_NAME).get(_STATE_KEY)
    if state is None:
        raise BundleError(f'checkpoint "{folder}" contains no state to resume from', code="checkpoint_invalid")
    return state


def restore(folder: Path, models: Sequence[nn.Module], optimisers: Sequence[Optimizer] = ()) -> None:
    """Load the state of a checkpoint into models, and into optimisers if any are given.

    Raises:
        BundleError: the checkpoint is damaged, or is one of other models.
    """
    path = folder / WEIGHTS_NAME
    _fill(models, _tensors(path, "stages."), path)
    for index, optimiser in enumerate(optimisers):
        try:
            _fill_optimiser(optimiser, _tensors(path, f"optimisers.{index}."))
        except (ValueError, KeyError, RuntimeError) as error:
            problem = f'checkpoint "{path}": the state of an optimiser does not fit: {one_line(str(error))}'
            raise BundleError(problem, code="checkpoint_invalid") from error


def _empty_models(card: CheckpointCard) -> list[nn.Module]:
    sizes = ModelSizes(card.feature_dim, len(card.classes), card.hierarchy, len(card.stages))
    return model_kind(card.kind).build(card.model, sizes)


def _check_sizes(card: CheckpointCard, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare the sizes in the card with the weights before memory is allocated for models of these sizes."""
    try:
        with torch.device("meta"):
            outlines = _empty_models(card)
    except NotImplementedError:  # a head of another package that computes with its initial weights
        return
    expected = {name: tensor.shape for name, tensor in _state(outlines).items()}
    wrong = sorted(name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape)
    if wrong:
        name = wrong[0]
        raise BundleError(
            f'checkpoint "{path}": {name} has the shape {tuple(tensors[name].shape)}, but the card says '
            f"{tuple(expected[name])}",
            code="checkpoint_invalid",
        )
    _check_names(expected, tensors, path)


def _same_json(one: bytes, other: str) -> bool:
    try:
        same: bool = json.loads(one) == json.loads(other)
    except ValueError:
        return False
    return same


def _pretty(card: CheckpointCard) -> str:
    return card.model_dump_json(indent=2) + "\n"


def _state(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """All weights of the models, by their names in a checkpoint."""
    return {
        f"stages.{index}.{name}": tensor
        for index, model in enumerate(models)
        for name, tensor in model.state_dict().items()
    }


def _weights(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _state(models).items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _check_names(expected: Mapping[str, object], tensors: Mapping[str, Tensor], path: Path) -> None:
    wrong = sorted(expected.keys() ^ tensors.keys())
    if wrong:
        raise BundleError(
            f'checkpoint "{path}" does not fit the models: {", ".join(wrong[:5])}'
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            code="checkpoint_invalid",
        )


def _fill(models: Sequence[nn.Module], tensors: Mapping[str, Tensor], path: Path) -> None:
    _check_names(_state(models), tensors, path)
    for index, model in enumerate(models):
        prefix = f"stages.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            model.load_state_dict(own)
        except RuntimeError as error:
            raise BundleError(f'checkpoint "{path}", stage {index}: {error}', code="checkpoint_invalid") from error


def _optimiser_tensors(optimiser: Optimizer, prefix: str) -> dict[str, Tensor]:
    """State tensors of the parameters, named ``<prefix><index of the parameter>.<name>``."""
    state: Mapping[int, Mapping[str, Tensor]] = optimiser.state_dict()["state"]
    return {
        f"{prefix}{index}.{name}": tensor.detach().cpu().contiguous()
        for index, values in state.items()
        for name, tensor in values.items()
    }


def _fill_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")[-2:]
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BundleError(f'checkpoint "{path}" cannot be read: {error}', code="checkpoint_unreadable") from error


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Copy all tensors whose names start with a prefix, because the file may be replaced later."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: torch.clone(file.get_tensor(name)) for name in names}
    except (OSError, SafetensorError) as error:
        raise BundleError(f'checkpoint "{path}" cannot be read: {error}', code="checkpoint_unreadable") from error
