"""The run folder: its files, and the check that a training may use it.

config.yaml             the configuration, with all keys
checkpoints/best, last  see hagmil.trainer.checkpoints.checkpoint
metrics.json            metrics of the best weights; written at the end
tensorboard/            losses and metrics by epoch
train.log               log of the training
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from hagmil._files import reporting_output_errors, write_text
from hagmil._models import FrozenModel
from hagmil.errors import UsageError
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.labels import Part
from hagmil.trainer.metrics.classification import ClassificationMetrics

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.json"
LOG_NAME = "train.log"
TENSORBOARD_NAME = "tensorboard"

_PLACES = {"out", "data.features", "data.labels", "data.split"}  # paths; their content must be the same
_SCALE = {"device", "threads", "data.prefetch", "checkpoint_blocks_above"}  # no effect on the weights
_MAY_CHANGE = _PLACES | _SCALE | {"schedule.max_epochs", "schedule.patience"}
_FIXED_FOR_HMIL = {"schedule.max_epochs"}  # its curriculum depends on the number of epochs


class RunMetrics(FrozenModel):
    """``metrics.json``: metrics of the best weights of a run."""

    classes: tuple[str, ...] = Field(description="with a hierarchy, the fine classes")
    epochs: int = Field(description="number of trained epochs")
    best_epoch: int
    stopped_early: bool
    train_slides: int
    empty_slides: dict[Part, tuple[str, ...]] = Field(description="slides without tissue, which are left out")
    validation: ClassificationMetrics
    test: ClassificationMetrics


def check_folder(config: TrainingConfig, *, resume: bool) -> None:
    """Check that a training may use its run folder.

    Args:
        config: configuration of the training; ``out`` is the run folder.
        resume: continue the run in the folder, if there is one.

    Raises:
        UsageError: the folder contains a run and ``resume`` is not set, or the run has a different recipe.
    """
    path = config.out / CONFIG_NAME
    if not path.exists():
        return
    if not resume:
        raise UsageError(
            f'"{config.out}" already contains a run; pass --resume to continue it, or choose another out',
            code="run_exists",
        )
    may_change = _MAY_CHANGE - _FIXED_FOR_HMIL if config.kind == "hmil" else _MAY_CHANGE
    changed = sorted(_differences(_stored(path, type(config)), config.model_dump(mode="json")) - may_change)
    if changed:
        raise UsageError(
            f'the run in "{config.out}" was started with a different {", ".join(changed)}; '
            "resume it with the values of its config.yaml, or choose another out"
        )


def write_config(config: TrainingConfig) -> None:
    """Write the configuration into the run folder; its presence marks the folder as a run."""
    write_text(config.out / CONFIG_NAME, config.to_yaml())


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append the package's log messages of level INFO and above to a file while the block runs.

    Args:
        path: the file, in an existing folder.

    Raises:
        EnvironmentLacks: the file cannot be written.
    """
    logger = logging.getLogger("hagmil")
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        with suppress(OSError):  # of a write that has failed before
            handler.close()


class _LogFile(logging.FileHandler):
    """A log file whose errors end the training; logging would print each with a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error of the last write."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with reporting_output_errors(Path(self.baseFilename)):
            raise error


def _stored(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The stored configuration, with the defaults of keys that did not exist when it was written."""
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f'"{path}" is not valid YAML: {error}') from error
    if not isinstance(stored, dict):
        raise UsageError(
            f'"{path}" is not a mapping of configuration keys; resume with the original file, or choose another out'
        )
    try:
        return model.model_validate(stored).model_dump(mode="json")
    except ValidationError:  # of another kind, or edited; the comparison names the keys
        return stored


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of the keys with different values."""
    names: set[str] = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.add(prefix + key)
    return names
