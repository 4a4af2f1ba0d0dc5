"""Configuration of a training: a YAML file or a shipped recipe, with ``key=value`` overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, create_model, model_validator

from hagmil._models import FrozenModel, Within
from hagmil.bundle import Hierarchy
from hagmil.errors import UsageError, one_line
from hagmil.spec import ClassNames, Count
from hagmil.trainer.compute.mixed_precision import TrainingPrecision
from hagmil.trainer.config.explained import section_of
from hagmil.trainer.config.sections import (
    AlignmentConfig,
    CascadeConfig,
    DataConfig,
    HeadOptimiserConfig,
    HierarchyConfig,
    HmilOptimiserConfig,
    HmilScheduleConfig,
    LossConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from hagmil.trainer.losses.hmil import HmilLossConfig
from hagmil.trainer.losses.registry import find_loss, loss_names
from hagmil.trainer.models.hmil import HmilConfig
from hagmil.trainer.models.iat import IatConfig
from hagmil.trainer.models.registry import Head, kind_names, model_kind

RECIPES = Path(__file__).with_name("recipes")
"""Folder of the configurations that come with the package."""
TEMPLATE_PATHS = {"features": "features", "labels": "labels.csv", "split": "splits/splits_0.csv"}
"""Values of the keys without a default in :func:`default_config`."""
_RECIPE_PREFIX = "recipe:"
_PATH_KEYS = (("out",), ("data", "features"), ("data", "labels"), ("data", "split"))
_NOT_IN_DIGEST = {"out": True, "data": True, "device": True, "threads": True, "checkpoint_blocks_above": True}
_ADDED_LATER: dict[str, tuple[type[BaseModel], tuple[str, ...]]] = {
    "cascade": (CascadeConfig, ("keep_random", "validation_keeps", "teach", "teach_from")),
    "model": (IatConfig, ("readout", "rows", "count_padding")),
}
"""Keys that did not exist when the first recipes were digested, by section."""
_SIMILAR = 0.75  # ratio of difflib from which a name is suggested
_KIND = "kind of model: hag-mil, hmil, or another head such as abmil or clam-sb"
_OUT = "run folder"
_CLASSES = "names of the classes in the order of the logits; null: the labels in the split, sorted"
_SEED = "seed of weights, sampling and dropout"
_DEVICE_PATTERN = r"^(cpu|cuda(:\d+)?)$"
_DEVICE = "cpu, cuda or cuda:N"
_THREADS = "threads of torch on the CPU; null: torch's default"
Seed = Annotated[int, Within(0, 2**63 - 1)]
_PRECISION = "fp32, or bf16: training steps in mixed precision; losses, optimisers and evaluation stay in float32"


class _Training(FrozenModel):
    """Methods of both kinds of configuration."""

    def recipe_sha256(self) -> str:
        """Digest of all settings that determine the weights, given the data: without paths, device and threads.

        Keys that were added later count only if they differ from their defaults, so that digests stay the same.
        """
        recipe = self.model_dump(mode="json", exclude=_NOT_IN_DIGEST)
        for section, (model, keys) in _ADDED_LATER.items():
            values = recipe.get(section, {})
            for key in keys:
                if key in values and values[key] == model.model_fields[key].default:
                    del values[key]
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The whole configuration with every key."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class HagMilConfig(_Training):
    """Configuration of a HAG-MIL training."""

    kind: Literal["hag-mil"] = Field(default="hag-mil", description=_KIND)
    out: Path = Field(default=Path("runs/hag-mil"), description=_OUT)
    data: DataConfig
    classes: ClassNames | None = Field(default=None, description=_CLASSES)
    hierarchy: HierarchyConfig | None = Field(
        default=None,
        description="in place of classes: coarse labels at the coarse stages, fine labels at the finest; null: none",
    )
    model: IatConfig = IatConfig()
    loss: LossConfig = LossConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    cascade: CascadeConfig = CascadeConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: Seed = Field(default=0, description=_SEED)
    device: str = Field(default="cpu", pattern=_DEVICE_PATTERN, description=_DEVICE)
    threads: Annotated[int, Within(1, 4096)] | None = Field(default=None, description=_THREADS)
    precision: TrainingPrecision = Field(default="fp32", description=_PRECISION)
    checkpoint_blocks_above: Count | None = Field(
        default=16384,
        description="compute each block twice for bags with more patches, which saves memory; null: never",
    )

    @model_validator(mode="after")
    def _check_classes(self) -> HagMilConfig:
        if self.hierarchy is not None and self.classes is not None:
            raise ValueError("the hierarchy names the classes; remove classes")
        return self

    def class_names(self) -> tuple[str, ...] | None:
        """Classes of the prediction in the order of its logits; None if they follow from the labels."""
        return self.hierarchy.fine if self.hierarchy else self.classes

    def label_hierarchy(self) -> Hierarchy | None:
        """The hierarchy of the labels, with indices in the map; None without one."""
        return self.hierarchy.resolved() if self.hierarchy else None


class HmilTrainingConfig(_Training):
    """Configuration of an HMIL training."""

    kind: Literal["hmil"] = Field(description=_KIND)
    out: Path = Field(default=Path("runs/hmil"), description=_OUT)
    data: DataConfig
    hierarchy: HierarchyConfig
    model: HmilConfig = HmilConfig()
    loss: HmilLossConfig = HmilLossConfig()
    optimiser: HmilOptimiserConfig = HmilOptimiserConfig()
    schedule: HmilScheduleConfig = HmilScheduleConfig()
    seed: Seed = Field(default=0, description=_SEED)
    device: str = Field(default="cpu", pattern=_DEVICE_PATTERN, description=_DEVICE)
    threads: Annotated[int, Within(1, 4096)] | None = Field(default=None, description=_THREADS)
    precision: TrainingPrecision = Field(default="fp32", description=_PRECISION)

    def class_names(self) -> tuple[str, ...]:
        """The fine classes in the order of their logits."""
        return self.hierarchy.fine

    def label_hierarchy(self) -> Hierarchy:
        """The hierarchy of the labels, with indices in the map."""
        return self.hierarchy.resolved()


class HeadTrainingConfig(_Training):
    """Configuration of the training of another head, at one spacing; :func:`config_class` gives it its sections."""

    kind: str = Field(description=_KIND)
    out: Path = Field(default=Path("runs/head"), description=_OUT)
    data: DataConfig
    classes: ClassNames | None = Field(default=None, description=_CLASSES)
    model: SerializeAsAny[FrozenModel]
    loss: SerializeAsAny[FrozenModel]
    optimiser: HeadOptimiserConfig = HeadOptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: Seed = Field(default=0, description=_SEED)
    device: str = Field(default="cpu", pattern=_DEVICE_PATTERN, description=_DEVICE)
    threads: Annotated[int, Within(1, 4096)] | None = Field(default=None, description=_THREADS)
    precision: TrainingPrecision = Field(default="fp32", description=_PRECISION)

    def class_names(self) -> tuple[str, ...] | None:
        """Classes of the prediction in the order of its logits; None if they follow from the labels."""
        return self.classes

    def label_hierarchy(self) -> None:
        """There is no hierarchy of labels."""
        return

    @property
    def loss_name(self) -> str:
        """Name of the loss."""
        return str(self.loss.model_dump()["name"])


TrainingConfig = HagMilConfig | HmilTrainingConfig | HeadTrainingConfig
"""A configuration of any kind; the key ``kind`` tells which."""

_PUBLISHED: dict[str, type[HagMilConfig] | type[HmilTrainingConfig]] = {
    "hag-mil": HagMilConfig,
    "hmil": HmilTrainingConfig,
}


def config_class(kind: str, loss: str | None = None) -> type[TrainingConfig]:
    """The class of the configurations of a kind.

    Args:
        kind: kind of model.
        loss: name of the loss of a head; None: that of the head.

    Raises:
        UsageError: the kind or the loss is unknown.
    """
    if kind in _PUBLISHED:
        return _PUBLISHED[kind]
    head = model_kind(kind)
    assert isinstance(head, Head)
    return _head_config_class(kind, head, loss or head.loss)


@cache
def _head_config_class(kind: str, head: Head, loss: str) -> type[HeadTrainingConfig]:
    """One class for each kind and loss, so that equal configurations compare equal."""
    parameters = find_loss(loss).config
    this_loss: Any = Literal[loss]
    this_kind: Any = Literal[kind]
    section = create_model(
        "HeadLossConfig",
        __base__=parameters,
        __doc__=parameters.__doc__,
        name=(this_loss, Field(default=loss, description=f"name of the loss: {' or '.join(loss_names())}")),
    )
    return create_model(
        "HeadTrainingConfig",
        __base__=HeadTrainingConfig,
        __doc__=HeadTrainingConfig.__doc__,
        kind=(this_kind, Field(description=_KIND)),
        out=(Path, Field(default=Path("runs") / kind.replace(":", "-"), description=_OUT)),
        model=(head.config, head.config()),
        loss=(section, section()),
    )


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a training configuration.

    Relative paths in a file are relative to the folder of the file. Relative paths in a recipe, in overrides and in
    defaults are relative to the working directory.

    Args:
        path: the YAML file, or ``recipe:NAME`` for a recipe that comes with the package.
        overrides: ``key=value``, with dots for nested keys (``loss.k_sample=4``) and values in YAML.

    Returns:
        The configuration with absolute paths.

    Raises:
        UsageError: the file cannot be read, the recipe or a key is unknown (similar names are suggested), or a value
            is invalid.
    """
    file, folder = _locate(str(path))
    return _with_overrides(_anchored(_read_yaml(file), folder), overrides, source=str(path))


def default_config(overrides: Sequence[str] = ()) -> TrainingConfig:
    """A configuration of defaults: HAG-MIL, with ``TEMPLATE_PATHS`` in the working directory.

    Args:
        overrides: as for :func:`load_config`.

    Raises:
        UsageError: a key is unknown, or a value is invalid.
    """
    return _with_overrides({"data": dict(TEMPLATE_PATHS)}, overrides, source="defaults")


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    return tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))


def parse_config(tree: Mapping[str, Any], *, source: str) -> TrainingConfig:
    """Validate a configuration that is a tree of mappings.

    Args:
        tree: keys to values, with nested sections; of kind hag-mil if it has no key ``kind``.
        source: where it comes from, for messages.

    Returns:
        The configuration. Paths are absolute; relative ones are relative to the working directory.

    Raises:
        UsageError: a key is unknown, or a value is invalid.
    """
    model = _config_class_of(tree, source)
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_describe(problem, model) for problem in error.errors())
        raise UsageError(f'configuration "{source}": {problems}', code="configuration") from error
    data = config.data
    paths = {
        "features": data.features.absolute(),
        "labels": None if data.labels is None else data.labels.absolute(),
        "split": data.split.absolute(),
    }
    return config.model_copy(update={"out": config.out.absolute(), "data": data.model_copy(update=paths)})


def _config_class_of(tree: Mapping[str, Any], source: str) -> type[TrainingConfig]:
    kind, loss = tree.get("kind", "hag-mil"), tree.get("loss")
    if not isinstance(kind, str):
        kinds = ", ".join(kind_names())
        raise UsageError(f'configuration "{source}": kind is {kind!r}; it must be one of {kinds}', code="configuration")
    name = loss.get("name") if isinstance(loss, Mapping) else None
    try:
        return config_class(kind, None if name is None else str(name))
    except UsageError as error:
        raise UsageError(f'configuration "{source}": {error.message}', code="configuration") from error


def _with_overrides(tree: dict[str, Any], overrides: Sequence[str], *, source: str) -> TrainingConfig:
    for override in overrides:
        tree = _merged(tree, _anchored(_parse_override(override), Path()))
    return parse_config(tree, source=source)


def _locate(path: str) -> tuple[Path, Path]:
    """The file of a configuration, and the folder to which its paths are relative."""
    if not path.startswith(_RECIPE_PREFIX):
        return Path(path), Path(path).parent
    name = path.removeprefix(_RECIPE_PREFIX)
    if name not in recipe_names():
        similar = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=_SIMILAR)
        hint = f'; did you mean "{similar[0]}"?' if similar else f"; the recipes are {', '.join(recipe_names())}"
        raise UsageError(f'no recipe "{name}"{hint}', code="configuration")
    return RECIPES / f"{name}.yaml", Path()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f'configuration "{path}" cannot be read: {error.strerror}') from error
    except Exception as error:  # PyYAML raises errors of many types
        raise UsageError(f'configuration "{path}" is not valid YAML: {one_line(str(error))}') from error
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
    except Exception as error:  # PyYAML raises errors of many types
        raise UsageError(f'"--set {override}": the value is not valid YAML: {one_line(str(error))}') from error
    for part in reversed(key.split(".")):
        value = {part: value}
    tree: dict[str, Any] = value
    return tree


def _anchored(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the relative paths in a tree absolute, relative to a folder."""
    for keys in _PATH_KEYS:
        section: Any = tree
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(keys[-1]), str):
            section[keys[-1]] = str((folder / Path(section[keys[-1]]).expanduser()).absolute())
    return tree


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _describe(problem: Any, model: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        similar = _similar_key(name, list(_known_keys(model)))
        return f'unknown key "{name}"' + (f'; did you mean "{similar}"?' if similar else "")
    if problem["type"] == "missing":
        return f'key "{name}" is missing'
    return f"{name}: {problem['msg']}" if name else str(problem["msg"])


def _similar_key(key: str, known_keys: Sequence[str]) -> str | None:
    """A similar name in the same section, or the same name in another section."""
    section, _, name = key.rpartition(".")
    siblings = [known for known in known_keys if known.rpartition(".")[0] == section]
    names = [known.rpartition(".")[2] for known in siblings]
    similar = difflib.get_close_matches(name, names, n=1, cutoff=_SIMILAR)
    if similar:
        return siblings[names.index(similar[0])]
    return next((known for known in known_keys if known.rpartition(".")[2] == name), None)


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        section = section_of(field)
        if section is not None:
            yield from _known_keys(section, f"{prefix}{name}.")
