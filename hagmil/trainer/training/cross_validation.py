"""Cross-validation: train the folds one after the other, and summarise them.

1. Train fold i on ``splits_i.csv`` in the run folder ``<out>/fold_i``. An interrupted fold is resumed.
2. Skip a fold that already has a ``metrics.json``. It is an error if it was trained with a different recipe or on
   different data.
3. After each fold, write ``<out>/summary.json`` with the metrics of every finished fold, their mean and their standard
   deviation.
"""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from hagmil._files import write_text
from hagmil._models import FrozenModel
from hagmil.errors import DataError, UsageError
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from hagmil.trainer.compute.distributed import ProcessGroup, join_process_group
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.tables import read_tables
from hagmil.trainer.metrics.classification import ClassificationMetrics
from hagmil.trainer.training.loop import train
from hagmil.trainer.training.progress import ProgressCallback
from hagmil.trainer.training.run_folder import METRICS_NAME, RunMetrics, check_folder

SUMMARY_NAME = "summary.json"

_log = logging.getLogger(__name__)
_SPLIT_NAME = re.compile(r"splits_(\d+)\.csv")
_NOT_MEASURES = {"slides", "empty_slides"}


class FoldStatistics(FrozenModel):
    """Statistics of one measure over folds."""

    mean: float | None = Field(description="over the folds where it is defined; null if there are none")
    deviation: float | None = Field(description="sample standard deviation; null with fewer than two folds")
    folds: tuple[float | None, ...] = Field(description="value of each fold; null where it is not defined")


class FoldRun(FrozenModel):
    """One finished fold."""

    fold: int = Field(ge=0)
    split: str = Field(description="path of its split")
    out: str = Field(description="path of its run folder")
    metrics: RunMetrics


class FoldsSummary(FrozenModel):
    """``summary.json``: metrics of each fold and statistics over folds."""

    format: Literal["hagmil-folds"] = "hagmil-folds"
    format_version: Literal[1] = 1
    planned: int = Field(ge=1, description="number of folds to train")
    folds: tuple[FoldRun, ...] = Field(description="finished folds")
    validation: dict[str, FoldStatistics] = Field(description="by measure")
    test: dict[str, FoldStatistics]


def train_folds(
    config: TrainingConfig,
    folder: Path,
    *,
    progress: Callable[[int, int], ProgressCallback] | None = None,
    after_fold: Callable[[FoldRun, int], None] | None = None,
) -> FoldsSummary:
    """Train every fold that is not finished, and summarise all folds.

    Args:
        config: configuration of all folds; ``out`` is the folder of their runs, ``data.split`` is not used.
        folder: folder with ``splits_0.csv`` and so on, as written by ``hagmil split``.
        progress: called with the index of the fold and the number of folds; returns the callback of the training.
        after_fold: called with each finished fold and the number of folds.

    Returns:
        The summary, as in ``<out>/summary.json``.

    Raises:
        UsageError: there are no splits, or a fold was trained with a different recipe.
        DataError: a fold was trained on different data, or features, labels and split do not match.
        Interrupted: stopped by a signal; the same call continues the training.
    """
    with join_process_group(config.device) as group:
        return _train_folds(config, folder, group, progress=progress, after_fold=after_fold)


def _train_folds(
    config: TrainingConfig,
    folder: Path,
    group: ProcessGroup,
    *,
    progress: Callable[[int, int], ProgressCallback] | None,
    after_fold: Callable[[FoldRun, int], None] | None,
) -> FoldsSummary:
    splits = fold_splits(folder)
    runs: list[FoldRun] = []
    for place, (fold, split) in enumerate(splits):
        own = fold_config(config, fold, split)
        metrics = finished_metrics(own)  # step 2
        if metrics is None:
            _log.info("fold %d of %d: training on %s", place + 1, len(splits), split)
            callback = progress(place, len(splits)) if progress else None
            metrics = train(own, resume=True, progress=callback)  # step 1
        runs.append(FoldRun(fold=fold, split=str(split), out=str(own.out), metrics=metrics))
        summary = summarise(runs, planned=len(splits))  # step 3
        if group.is_first:
            write_text(config.out / SUMMARY_NAME, summary.model_dump_json(indent=2) + "\n")
        if after_fold is not None:
            after_fold(runs[-1], len(splits))
    return summary


def fold_splits(folder: Path) -> list[tuple[int, Path]]:
    """Find the splits in a folder: numbers and paths of ``splits_i.csv``, sorted by number.

    Raises:
        UsageError: there are none.
    """
    found = []
    for path in folder.glob("splits_*.csv"):
        match = _SPLIT_NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path.absolute()))
    if not found:
        raise UsageError(f'"{folder}" contains no splits_0.csv; create folds with hagmil split --folds')
    return sorted(found)


def fold_config(config: TrainingConfig, fold: int, split: Path) -> TrainingConfig:
    """The configuration of one fold, with its run folder and its split."""
    data = config.data.model_copy(update={"split": split, "fold": None})
    return config.model_copy(update={"out": config.out / f"fold_{fold}", "data": data})


def finished_metrics(config: TrainingConfig) -> RunMetrics | None:
    """Metrics of a fold, or None if it is not finished (step 2).

    Raises:
        UsageError: the fold was trained with a different recipe.
        DataError: the fold was trained on different data.
    """
    path = config.out / METRICS_NAME
    if not path.is_file():
        return None
    check_folder(config, resume=True)
    try:
        metrics = RunMetrics.model_validate_json(path.read_bytes())
    except ValidationError:
        _log.warning('"%s" has the format of another version; evaluating the fold again', path)
        return None
    training = load_checkpoint(config.out).card.training
    tables = read_tables(config.data.labels, config.data.split, classes=config.class_names())
    for what in ("labels", "split"):
        if training is not None and getattr(training, f"{what}_sha256") != getattr(tables, f"{what}_sha256"):
            raise DataError(
                f'the fold in "{config.out}" was trained with different {what}; choose another out, or delete it'
            )
    return metrics


def summarise(runs: Sequence[FoldRun], *, planned: int) -> FoldsSummary:
    """Compute mean and standard deviation of every measure over folds.

    Args:
        runs: finished folds.
        planned: number of folds to train.
    """
    return FoldsSummary(
        planned=planned,
        folds=tuple(runs),
        validation=_statistics([run.metrics.validation for run in runs]),
        test=_statistics([run.metrics.test for run in runs]),
    )


def _statistics(metrics: Sequence[ClassificationMetrics]) -> dict[str, FoldStatistics]:
    columns: dict[str, list[float | None]] = {}
    for one in metrics:
        for name, value in _measures(one.model_dump()):
            columns.setdefault(name, []).append(value)
    return {name: _fold_statistics(values) for name, values in columns.items()}


def _measures(tree: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Name and value of every measure of a fold; those of a hierarchy follow in the same list."""
    found: list[tuple[str, float | None]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found.extend(_measures(value))
        elif name not in _NOT_MEASURES and not (name == "hierarchy" and value is None):
            found.append((name, value))
    return found


def _fold_statistics(values: Sequence[float | None]) -> FoldStatistics:
    defined = [value for value in values if value is not None]
    return FoldStatistics(
        mean=statistics.fmean(defined) if defined else None,
        deviation=statistics.stdev(defined) if len(defined) > 1 else None,
        folds=tuple(values),
    )
