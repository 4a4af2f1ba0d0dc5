"""The configuration of a training: a YAML file, ``key=value`` overrides, and what they must be."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hagmil.errors import UsageError
from hagmil.trainer.losses import InstanceLossKind
from hagmil.trainer.models.iat import IatConfig

_PATH_KEYS = (("out",), ("data", "features"), ("data", "labels"), ("data", "split"))
_NOT_OF_THE_RECIPE = {"out": True, "data": True, "device": True, "threads": True}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Where features, labels and split are."""

    features: Path = Field(description="folder of <slide_id>.h5 files, as hagmil extract writes them")
    labels: Path = Field(description="CSV with the columns slide_id, case_id, label")
    split: Path = Field(description="CSV with the columns train, val, test, as CLAM writes them")


class LossConfig(_Section):
    """Weights and settings of the losses; the defaults are the published recipe."""

    bag_weight: float = Field(default=0.5, ge=0)
    instance_weight: float = Field(default=0.5, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="at all stages but the finest")
    instance: InstanceLossKind = "cross_entropy"
    k_sample: int = Field(default=8, ge=1, description="patches of highest and of lowest attention each")
    subtyping: bool = Field(default=False, description="classes exclude one another and none means normal")


class OptimiserConfig(_Section):
    """Adam, one for each stage."""

    learning_rate: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)


class CascadeConfig(_Section):
    """How many patches of highest attention a stage hands to the next."""

    keep_train: int = Field(default=7000, ge=1)
    keep_validation: int = Field(default=10000, ge=1, description="in validation, test and deployment")


class ScheduleConfig(_Section):
    """How long to train, and on what order of slides."""

    max_epochs: int = Field(default=200, ge=1)
    patience: int = Field(default=20, ge=1, description="epochs without a better validation loss, then stop")
    weighted_sampling: bool = Field(default=False, description="draw slides so that classes are equally frequent")


class HagMilConfig(_Section):
    """A HAG-MIL training."""

    kind: Literal["hag-mil"] = "hag-mil"
    out: Path = Field(default=Path("runs/hag-mil"), description="the run folder")
    data: DataConfig
    classes: tuple[str, ...] | None = Field(
        default=None,
        min_length=2,
        description="in the order of the logits; the labels found, sorted, where null",
    )
    model: IatConfig = IatConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    cascade: CascadeConfig = CascadeConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1, description="of torch on the CPU; its own choice where null")

    def recipe_sha256(self) -> str:
        """Digest of everything that decides the weights, given the data: not of paths, device and threads."""
        recipe = self.model_dump(mode="json", exclude=_NOT_OF_THE_RECIPE)
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The whole configuration, every key spelt out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path, overrides: Sequence[str] = ()) -> HagMilConfig:
    """Read a training configuration.

    A relative path means what it says where it is written: in the file relative to the file's folder, in an
    override (or by default) to the working directory.

    Args:
        path: the YAML file.
        overrides: ``key=value``, nested keys with dots (``loss.k_sample=4``), values as YAML.

    Returns:
        The configuration, all paths absolute.

    Raises:
        UsageError: a file that cannot be read, an unknown key (the nearest known one is named), or a bad
        value.
    """
    tree = _anchored(_read_yaml(path), path.parent)
    for override in overrides:
        tree = _merged(tree, _anchored(_parse_override(override), Path()))
    return parse_config(tree, source=str(path))


def parse_config(tree: Mapping[str, Any], *, source: str) -> HagMilConfig:
    """Check a configuration that is already a tree of mappings.

    Args:
        tree: keys to values, sections nested.
        source: where it comes from, for messages.

    Raises:
        UsageError: an unknown key or a bad value.
    """
    try:
        config = HagMilConfig.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise UsageError(f'configuration "{source}": {problems}', code="configuration") from error
    return config.model_copy(update={"out": config.out.absolute()})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f'configuration "{path}" cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f'configuration "{path}" is not valid YAML: {error}') from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f'configuration "{path}" must be a mapping of keys to values')
    return tree


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f'"--set {override}" must have the form key=value')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f'"--set {override}": the value is not valid YAML: {error}') from error
    for part in reversed(key.split(".")):
        value = {part: value}
    tree: dict[str, Any] = value
    return tree


def _anchored(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tree with its relative paths made absolute, as seen from a folder."""
    for keys in _PATH_KEYS:
        section: Any = tree
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(keys[-1]), str):
            section[keys[-1]] = str((folder / Path(section[keys[-1]]).expanduser()).absolute())
    return tree


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _describe(problem: Any) -> str:
    keys = [str(part) for part in problem["loc"]]
    name = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, _known_keys(HagMilConfig), n=1, cutoff=0.5)
        return f'unknown key "{name}"' + (f'; did you mean "{near[0]}"?' if near else "")
    if problem["type"] == "missing":
        return f'key "{name}" is missing'
    return f"{name}: {problem['msg']}" if name else str(problem["msg"])


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.extend(_known_keys(field.annotation, f"{prefix}{name}."))
    return names
