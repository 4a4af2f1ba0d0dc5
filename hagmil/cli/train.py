"""hagmil train: train a model on features and labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.trainer.metrics.classification import ClassificationMetrics
    from hagmil.trainer.training.cross_validation import FoldsSummary
    from hagmil.trainer.training.progress import TrainingProgress


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="The configuration: a YAML file, or recipe:NAME.", metavar="CONFIG.yaml", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value that replaces a value of the file, as in optimiser.learning_rate=1e-4; repeatable."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    folds: Annotated[
        Path | None,
        typer.Option(
            "--folds",
            help="Folder written by hagmil split: train on each splits_i.csv into out/fold_i, and write summary.json. "
            "Skips finished folds and resumes an interrupted fold.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print the configuration with an explanation of each key, and exit; without CONFIG, the defaults.",
        ),
    ] = False,
) -> None:
    """Train HAG-MIL or HMIL on features, and write a run folder with checkpoints, metrics.json and logs.

    The key "kind" of the configuration selects the method. The package contains the recipes
    recipe:hag-mil-camelyon16, recipe:hmil-bracs, recipe:hag-mil-phantom and recipe:hmil-phantom; paths in recipes are
    relative to the working directory.
    """
    if print_config:
        _print_config(config, overrides or [])
        return
    if config is None:
        raise typer.BadParameter("give a YAML file or recipe:NAME", param_hint="CONFIG.yaml")
    if folds is not None:
        _train_folds(config, overrides or [], folds)
        return
    from hagmil.trainer.config.training import load_config
    from hagmil.trainer.training.loop import train as run

    loaded = load_config(config, overrides or [])
    with TrainingDisplay() as display:
        metrics = run(loaded, resume=resume, progress=display)
    if not _is_first_process():
        return
    console = common.stdout()
    for part, numbers in (("validation", metrics.validation), ("test", metrics.test)):
        if numbers.slides:
            console.print(f"{part}: {describe(numbers)}")
    console.print(f"best checkpoint: {loaded.out / 'checkpoints' / 'best'}")


def _print_config(config: str | None, overrides: list[str]) -> None:
    from hagmil.trainer.config.explained import explained_yaml
    from hagmil.trainer.config.training import default_config, load_config

    loaded = default_config(overrides) if config is None else load_config(config, overrides)
    typer.echo(explained_yaml(loaded), nl=False)


def _train_folds(config: str, overrides: list[str], folder: Path) -> None:
    """Train one model per fold, and print a table of their metrics."""
    import json

    from hagmil.trainer.config.training import load_config
    from hagmil.trainer.training.cross_validation import SUMMARY_NAME, fold_splits, train_folds

    split = json.dumps(str(fold_splits(folder)[0][1]))  # replaced by the split of each fold
    loaded = load_config(config, [*overrides, f"data.split={split}"])
    with TrainingDisplay() as display:
        summary = train_folds(loaded, folder, progress=display.fold)
    if not _is_first_process():
        return
    _show_folds(summary)
    common.stdout().print(f"summary: {loaded.out / SUMMARY_NAME}", markup=False, highlight=False)


def _is_first_process() -> bool:
    """Whether this process prints the results: only the first of those that torchrun started does."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _show_folds(summary: FoldsSummary) -> None:
    from rich.table import Table

    table = Table(title=f"{len(summary.folds)} folds, mean ± standard deviation")
    for column in ("part", "measure", "all", *(f"fold {run.fold}" for run in summary.folds)):
        table.add_column(column)
    for part, measures in (("validation", summary.validation), ("test", summary.test)):
        for name, spread in measures.items():
            over_all = f"{_number(spread.mean)} ± {_number(spread.deviation)}"
            table.add_row(part, name, over_all, *(_number(value) for value in spread.folds))
    common.stdout().print(table)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def describe(metrics: ClassificationMetrics) -> str:
    """Metrics in one line."""
    named: tuple[tuple[str, float | None], ...] = (
        ("AUC", metrics.auc),
        ("accuracy", metrics.accuracy),
        ("macro F1", metrics.macro_f1),
    )
    if metrics.hierarchy is not None:
        layers = metrics.hierarchy
        named = (*named, ("coarse accuracy", layers.coarse_accuracy), ("layers agree", layers.agreement))
    numbers = ", ".join(f"{name} {'undefined' if value is None else f'{value:.3f}'}" for name, value in named)
    return f"{numbers}, {metrics.slides} slides"


class TrainingDisplay(common.Bars):
    """Progress bars of the epochs and of the slides of the current phase; a callback of the training loop."""

    def __init__(self) -> None:
        super().__init__(transient=True)
        self._fold = ""
        self._epochs = self._bars.add_task("epochs", total=None)
        self._slides = self._bars.add_task("  slides", total=None)

    def fold(self, place: int, folds: int) -> TrainingDisplay:
        """Name the fold in the bars; ``place`` counts from 0."""
        self._fold = f"fold {place + 1} of {folds}, "
        return self

    def __call__(self, state: TrainingProgress) -> None:
        """See :data:`hagmil.trainer.training.loop.ProgressCallback`."""
        words = f"{self._fold}epochs"
        if state.last_validation is not None:
            words += f" (validation: {describe(state.last_validation)}; best epoch {state.best_epoch})"
        self._bars.update(self._epochs, description=words, completed=state.epoch, total=state.max_epochs)
        phase = f"  {state.phase}" + ("" if state.loss is None else f" loss {state.loss:.4f}")
        self._bars.update(self._slides, description=phase, completed=state.done, total=state.total)
