"""The configuration of a training: a YAML file or a shipped recipe, ``key=value`` overrides, and what they
must be.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from hagmil.bundle import Hierarchy
from hagmil.errors import UsageError
from hagmil.trainer.compute.mixed_precision import TrainingPrecision
from hagmil.trainer.config.sections import (
    AlignmentConfig,
    CascadeConfig,
    DataConfig,
    HierarchyConfig,
    HmilOptimiserConfig,
    HmilScheduleConfig,
    LossConfig,
    OptimiserConfig,
    ScheduleConfig,
    Section,
)
from hagmil.trainer.losses.hmil import HmilLossConfig
from hagmil.trainer.models.hmil import HmilConfig
from hagmil.trainer.models.iat import IatConfig

RECIPES = Path(__file__).with_name("recipes")
"""Folder of the configurations that come with the package."""
_RECIPE_PREFIX = "recipe:"
_PATH_KEYS = (("out",), ("data", "features"), ("data", "labels"), ("data", "split"))
_NOT_OF_THE_RECIPE = {"out": True, "data": True, "device": True, "threads": True, "checkpoint_blocks_above": True}
_CLASSES = "in the order of the logits; the labels found, sorted, where null"
_THREADS = "of torch on the CPU; its own choice where null"
_DEVICE = r"^(cpu|cuda(:\d+)?)$"
_PRECISION = "bf16: training steps in mixed precision; losses, optimisers and all evaluation stay in float32"


class _Training(Section):
    """What both kinds of configuration can do."""

    def recipe_sha256(self) -> str:
        """Digest of everything that decides the weights, given the data: not of paths, device and threads."""
        recipe = self.model_dump(mode="json", exclude=_NOT_OF_THE_RECIPE)
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The whole configuration, every key spelt out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class HagMilConfig(_Training):
    """A HAG-MIL training."""

    kind: Literal["hag-mil"] = "hag-mil"
    out: Path = Field(default=Path("runs/hag-mil"), description="the run folder")
    data: DataConfig
    classes: tuple[str, ...] | None = Field(default=None, min_length=2, description=_CLASSES)
    hierarchy: HierarchyConfig | None = Field(
        default=None,
        description="coarse labels at the coarse stages, the fine label at the finest; in place of classes",
    )
    model: IatConfig = IatConfig()
    loss: LossConfig = LossConfig()
    alignment: AlignmentConfig = Field(default=AlignmentConfig(), description="of use with a hierarchy alone")
    optimiser: OptimiserConfig = OptimiserConfig()
    cascade: CascadeConfig = CascadeConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="cpu", pattern=_DEVICE)
    threads: int | None = Field(default=None, ge=1, description=_THREADS)
    precision: TrainingPrecision = Field(default="fp32", description=_PRECISION)
    checkpoint_blocks_above: int | None = Field(
        default=16384,
        ge=0,
        description="bags of more patches keep no block's insides, but compute each block twice; never where null",
    )

    @model_validator(mode="after")
    def _one_list_of_classes(self) -> HagMilConfig:
        if self.hierarchy is not None and self.classes is not None:
            raise ValueError("the hierarchy names the classes; leave classes out")
        return self

    def class_names(self) -> tuple[str, ...] | None:
        """The classes of the verdict in the order of its logits; None where the labels shall tell."""
        return self.hierarchy.fine if self.hierarchy else self.classes

    def label_hierarchy(self) -> Hierarchy | None:
        """The hierarchy of labels, with numbers for the map; None without one."""
        return self.hierarchy.resolved() if self.hierarchy else None


class HmilTrainingConfig(_Training):
    """An HMIL training."""

    kind: Literal["hmil"]
    out: Path = Field(default=Path("runs/hmil"), description="the run folder")
    data: DataConfig
    hierarchy: HierarchyConfig
    model: HmilConfig = HmilConfig()
    loss: HmilLossConfig = HmilLossConfig()
    optimiser: HmilOptimiserConfig = HmilOptimiserConfig()
    schedule: HmilScheduleConfig = HmilScheduleConfig()
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="cpu", pattern=_DEVICE)
    threads: int | None = Field(default=None, ge=1, description=_THREADS)
    precision: TrainingPrecision = Field(default="fp32", description=_PRECISION)

    def class_names(self) -> tuple[str, ...]:
        """The fine classes in the order of their logits."""
        return self.hierarchy.fine

    def label_hierarchy(self) -> Hierarchy:
        """The hierarchy of labels, with numbers for the map."""
        return self.hierarchy.resolved()


TrainingConfig = HagMilConfig | HmilTrainingConfig
"""A configuration of either kind; the key ``kind`` says which."""

_KINDS: dict[str, type[HagMilConfig] | type[HmilTrainingConfig]] = {
    "hag-mil": HagMilConfig,
    "hmil": HmilTrainingConfig,
}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a training configuration.

    A relative path means what it says where it is written: in a file relative to the file's folder; in a
    recipe, in an override, or by default, to the working directory.

    Args:
        path: the YAML file, or ``recipe:NAME`` for one that comes with the package.
        overrides: ``key=value``, nested keys with dots (``loss.k_sample=4``), values as YAML.

    Returns:
        The configuration, all paths absolute.

    Raises:
        UsageError: a file that cannot be read, no such recipe, an unknown key (the nearest known one is
            named), or a bad value.
    """
    file, folder = _locate(str(path))
    tree = _anchored(_read_yaml(file), folder)
    for override in overrides:
        tree = _merged(tree, _anchored(_parse_override(override), Path()))
    return parse_config(tree, source=str(path))


def recipe_names() -> tuple[str, ...]:
    """Names of the configurations that come with the package."""
    return tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))


def parse_config(tree: Mapping[str, Any], *, source: str) -> TrainingConfig:
    """Check a configuration that is already a tree of mappings.

    Args:
        tree: keys to values, sections nested; HAG-MIL's where it has no key ``kind``.
        source: where it comes from, for messages.

    Raises:
        UsageError: an unknown key or a bad value.
    """
    kind = tree.get("kind", "hag-mil")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise UsageError(
            f'configuration "{source}": kind: {kind!r} is none of {", ".join(_KINDS)}', code="configuration"
        )
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_describe(problem, model) for problem in error.errors())
        raise UsageError(f'configuration "{source}": {problems}', code="configuration") from error
    return config.model_copy(update={"out": config.out.absolute()})


def _locate(path: str) -> tuple[Path, Path]:
    """The file of a configuration, and the folder that its relative paths are seen from."""
    if not path.startswith(_RECIPE_PREFIX):
        return Path(path), Path(path).parent
    name = path.removeprefix(_RECIPE_PREFIX)
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(recipe_names())}"
        raise UsageError(f'no recipe "{name}"{hint}', code="configuration")
    return RECIPES / f"{name}.yaml", Path()


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


def _describe(problem: Any, model: type[BaseModel]) -> str:
    keys = [str(part) for part in problem["loc"]]
    name = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(_known_keys(model)), n=1, cutoff=0.5)
        return f'unknown key "{name}"' + (f'; did you mean "{near[0]}"?' if near else "")
    if problem["type"] == "missing":
        return f'key "{name}" is missing'
    return f"{name}: {problem['msg']}" if name else str(problem["msg"])


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):  # a section, or one that may be null
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_keys(kind, f"{prefix}{name}.")
