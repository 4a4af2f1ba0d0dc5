"""A run folder: what is in it, and whether a training may use it.

config.yaml             the configuration, every key spelt out
checkpoints/best, last  see hagmil.trainer.checkpoints.checkpoint
metrics.json            what the best weights achieve; written at the end
tensorboard/            losses and metrics by epoch
train.log               what happened
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from hagmil._files import write_text
from hagmil._models import FrozenModel
from hagmil.errors import UsageError
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.labels import Part
from hagmil.trainer.metrics.classification import ClassificationMetrics

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.json"
LOG_NAME = "train.log"
TENSORBOARD_NAME = "tensorboard"

_PLACES = {"out", "data.features", "data.labels", "data.split"}  # what is found there must be the same
_SCALE = {"device", "threads", "data.prefetch", "checkpoint_blocks_above"}  # the same weights, another way
_MAY_CHANGE = _PLACES | _SCALE | {"schedule.max_epochs", "schedule.patience"}
_FIXED_FOR_HMIL = {"schedule.max_epochs"}  # its curriculum runs over all epochs


class RunMetrics(FrozenModel):
    """``metrics.json``: what the best weights of a run achieve."""

    classes: tuple[str, ...] = Field(description="with a hierarchy the fine ones")
    epochs: int = Field(description="epochs trained")
    best_epoch: int
    stopped_early: bool
    train_slides: int
    empty_slides: dict[Part, tuple[str, ...]] = Field(description="slides without tissue, left out of everything")
    validation: ClassificationMetrics
    test: ClassificationMetrics


def check_folder(config: TrainingConfig, *, resume: bool) -> None:
    """See that a training may use its run folder.

    Args:
        config: the training's; its ``out`` is the folder.
        resume: go on with the run that is there, if there is one.

    Raises:
        UsageError: there is a run already and it shall not be resumed, or it was started with another recipe.
    """
    path = config.out / CONFIG_NAME
    if not path.exists():
        return
    if not resume:
        raise UsageError(
            f'"{config.out}" already holds a run; pass --resume to go on with it, or choose another out',
            code="run_exists",
        )
    may_change = _MAY_CHANGE - _FIXED_FOR_HMIL if config.kind == "hmil" else _MAY_CHANGE
    changed = sorted(_differences(_stored(path), config.model_dump(mode="json")) - may_change)
    if changed:
        raise UsageError(
            f'the run in "{config.out}" was started with another {", ".join(changed)}; '
            "resume it with what its config.yaml says, or choose another out"
        )


def write_config(config: TrainingConfig) -> None:
    """Write the configuration into the run folder, which from then on holds a run."""
    write_text(config.out / CONFIG_NAME, config.to_yaml())


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append what the package logs to a file, from INFO up, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("hagmil")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f'"{path}" is not valid YAML: {error}') from error
    if not isinstance(stored, dict):
        raise UsageError(f'"{path}" holds no configuration')
    return stored


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of the keys whose values differ."""
    names: set[str] = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.add(prefix + key)
    return names
