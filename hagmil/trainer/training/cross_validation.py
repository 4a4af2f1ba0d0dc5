"""Cross-validation: one training a fold, one after the other, and a summary over them.

1. Fold i trains on ``splits_i.csv`` into ``<out>/fold_i``, an ordinary run folder.
2. A fold whose ``metrics.json`` is there is finished and is not trained again, if it was trained with this recipe on
   this data; with others it is an error. One that was stopped is gone on with.
3. ``<out>/summary.json`` holds every fold's metrics, and the mean and the standard deviation over folds. It is written
   anew after each fold.
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
    """One measure over folds."""

    mean: float | None = Field(description="over the folds that define it; null where none does")
    deviation: float | None = Field(description="sample standard deviation; null with fewer than two folds")
    folds: tuple[float | None, ...] = Field(description="of each fold; null where it does not define the measure")


class FoldRun(FrozenModel):
    """One finished fold."""

    fold: int = Field(ge=0)
    split: str = Field(description="the split that it was trained on")
    out: str = Field(description="its run folder")
    metrics: RunMetrics


class FoldsSummary(FrozenModel):
    """``summary.json``: what the folds achieve, each and together."""

    format: Literal["hagmil-folds"] = "hagmil-folds"
    format_version: Literal[1] = 1
    planned: int = Field(ge=1, description="folds that there shall be")
    folds: tuple[FoldRun, ...] = Field(description="those that are finished")
    validation: dict[str, FoldStatistics] = Field(description="by measure")
    test: dict[str, FoldStatistics]


def train_folds(
    config: TrainingConfig,
    folder: Path,
    *,
    progress: Callable[[int, int], ProgressCallback] | None = None,
    after_fold: Callable[[FoldRun, int], None] | None = None,
) -> FoldsSummary:
    """Train every fold that is not finished yet, and sum up.

    Args:
        config: of all folds; its ``out`` is the folder of the runs, its ``data.split`` is not used.
        folder: holds ``splits_0.csv`` and so on, as ``hagmil split`` writes them.
        progress: called with the fold's place (from 0) and the number of folds, gives the training's callback.
        after_fold: called with each fold, finished now or before, and the number of folds.

    Returns:
        The summary, as in ``<out>/summary.json``.

    Raises:
        UsageError: no splits, or a fold that was trained with another recipe.
        DataError: a fold that was trained on other data, or data that do not fit together.
        Interrupted: stopped by a signal; the same call goes on.
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
    """The splits in a folder: numbers and paths of ``splits_i.csv``, by number.

    Raises:
        UsageError: there are none.
    """
    found = []
    for path in folder.glob("splits_*.csv"):
        match = _SPLIT_NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path.absolute()))
    if not found:
        raise UsageError(f'"{folder}" holds no splits_0.csv; make folds with hagmil split --folds')
    return sorted(found)


def fold_config(config: TrainingConfig, fold: int, split: Path) -> TrainingConfig:
    """The configuration of one fold: its own run folder and its own split."""
    data = config.data.model_copy(update={"split": split, "fold": None})
    return config.model_copy(update={"out": config.out / f"fold_{fold}", "data": data})


def finished_metrics(config: TrainingConfig) -> RunMetrics | None:
    """What a fold achieved, if it is finished (step 2).

    Raises:
        UsageError: it was trained with another recipe. DataError: it was trained on other data.
    """
    path = config.out / METRICS_NAME
    if not path.is_file():
        return None
    check_folder(config, resume=True)
    try:
        metrics = RunMetrics.model_validate_json(path.read_bytes())
    except ValidationError:
        _log.warning('"%s" is of another version: the fold is evaluated anew', path)
        return None
    training = load_checkpoint(config.out).card.training
    tables = read_tables(config.data.labels, config.data.split, classes=config.class_names())
    for what in ("labels", "split"):
        if training is not None and getattr(training, f"{what}_sha256") != getattr(tables, f"{what}_sha256"):
            raise DataError(
                f'the fold in "{config.out}" was trained on other {what}; choose another out, or remove the folder'
            )
    return metrics


def summarise(runs: Sequence[FoldRun], *, planned: int) -> FoldsSummary:
    """Mean and deviation of every measure.

    Args:
        runs: finished folds.
        planned: how many there shall be.
    """
    return FoldsSummary(
        planned=planned,
        folds=tuple(runs),
        validation=_spreads([run.metrics.validation for run in runs]),
        test=_spreads([run.metrics.test for run in runs]),
    )


def _spreads(metrics: Sequence[ClassificationMetrics]) -> dict[str, FoldStatistics]:
    columns: dict[str, list[float | None]] = {}
    for one in metrics:
        for name, value in _measures(one.model_dump()):
            columns.setdefault(name, []).append(value)
    return {name: _spread(values) for name, values in columns.items()}


def _measures(tree: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Every measure of a fold by its name; those of a hierarchy stand beside the others."""
    found: list[tuple[str, float | None]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found.extend(_measures(value))
        elif name not in _NOT_MEASURES and not (name == "hierarchy" and value is None):
            found.append((name, value))
    return found


def _spread(values: Sequence[float | None]) -> FoldStatistics:
    defined = [value for value in values if value is not None]
    return FoldStatistics(
        mean=statistics.fmean(defined) if defined else None,
        deviation=statistics.stdev(defined) if len(defined) > 1 else None,
        folds=tuple(values),
    )
