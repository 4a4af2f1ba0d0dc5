"""hagmil train: features and labels to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.trainer.metrics import ClassificationMetrics
    from hagmil.trainer.progress import TrainingProgress


def train(
    config: Annotated[Path, typer.Argument(help="The configuration, a YAML file.", metavar="CONFIG.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the file's, such as optimiser.learning_rate=1e-4; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was stopped.")] = False,
) -> None:
    """Train HAG-MIL on features of every stage and write a run folder: checkpoints, metrics.json, logs."""
    from hagmil.trainer.config import load_config
    from hagmil.trainer.loop import train as run

    loaded = load_config(config, overrides or [])
    with TrainingDisplay() as display:
        metrics = run(loaded, resume=resume, progress=display)
    console = common.stdout()
    for part, numbers in (("validation", metrics.validation), ("test", metrics.test)):
        if numbers.slides:
            console.print(f"{part}: {describe(numbers)}")
    console.print(f"best checkpoint: {loaded.out / 'checkpoints' / 'best'}")


def describe(metrics: ClassificationMetrics) -> str:
    """Metrics in one line."""
    named = (("AUC", metrics.auc), ("accuracy", metrics.accuracy), ("macro F1", metrics.macro_f1))
    numbers = ", ".join(f"{name} {'undefined' if value is None else f'{value:.3f}'}" for name, value in named)
    return f"{numbers}, {metrics.slides} slides"


class TrainingDisplay:
    """One bar over epochs, one over the slides of the present phase; a callback of the training loop."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._epochs = self._bars.add_task("epochs", total=None)
        self._slides = self._bars.add_task("  slides", total=None)

    def __enter__(self) -> TrainingDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def __call__(self, state: TrainingProgress) -> None:
        """See :data:`hagmil.trainer.loop.ProgressCallback`."""
        words = "epochs"
        if state.last_validation is not None:
            words += f" (validation: {describe(state.last_validation)}; best epoch {state.best_epoch})"
        self._bars.update(self._epochs, description=words, completed=state.epoch, total=state.max_epochs)
        phase = f"  {state.phase}" + ("" if state.loss is None else f" loss {state.loss:.4f}")
        self._bars.update(self._slides, description=phase, completed=state.done, total=state.total)
