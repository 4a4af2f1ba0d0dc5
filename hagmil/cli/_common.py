"""Options and displays that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

Slides = Annotated[
    list[str] | None,
    typer.Argument(help="Slide files, folders or globs.", metavar="SLIDES...", show_default=False),
]
SlideTable = Annotated[
    Path | None,
    typer.Option("--slides", help="A CSV of slides: slide_id, path and, optionally, spacing_um.", show_default=False),
]
SpacingUm = Annotated[
    float | None,
    typer.Option("--spacing-um", help="Micrometres per level-0 pixel, in place of the file's.", show_default=False),
]
Provider = Annotated[str, typer.Option("--provider", help="cpu, cuda or tensorrt.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Patches given to the backbone at once; default: 16 to 64 on a CPU, by their size; else 64.",
        show_default=False,
    ),
]
Readers = Annotated[
    int | None,
    typer.Option(
        "--readers",
        min=1,
        help="Threads that read patches; default: 2 for a CPU; for a device all cores but one, 2 to 8.",
        show_default=False,
    ),
]
MaskDevice = Annotated[
    str, typer.Option("--mask-device", help="Where tissue masks are made: cpu, or cuda for cupy on a GPU.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of the model on the CPU; default: all cores.", show_default=False),
]

TrtFlavour = Annotated[
    str | None,
    typer.Option("--trt-flavour", help="tensorrt or tensorrt-rtx; default: the installed one.", show_default=False),
]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Provider tensorrt: build engines here where the bundle's do not fit.")
]

EXIT_SOME_SLIDES = 3
"""Exit code of a run that finished although some slides were rejected or failed."""


def megabytes(count: int | None) -> str:
    """Bytes in MB, 10^6, for a table; nothing where they are not known."""
    return "" if count is None else f"{count / 1e6:.1f}"


def stdout() -> Console:
    """The console that results go to."""
    from rich.console import Console

    return Console(soft_wrap=True)


def table(*heads: str, title: str | None = None) -> Table:
    """A plain table with these heads; all that is put into it is shown as it is."""
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for head in heads:
        view.add_column(head, overflow="fold")
    return view


class Bars:
    """Progress bars on standard error, drawn while the block runs.

    Args:
        transient: whether they vanish at its end.
    """

    def __init__(self, *, transient: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=transient,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()


class SlideProgress(Bars):
    """Two bars on standard error: the slides that are done, and the patches of the present stage.

    Args:
        total: how many slides there are.
        what: what is being done to them.
    """

    def __init__(self, total: int, what: str) -> None:
        super().__init__(transient=True)
        self._slides = self._bars.add_task(what, total=total)
        self._patches = self._bars.add_task("patches", total=None)

    def patches(self, stage: str, done: int, total: int) -> None:
        """Show how far the present stage is; see :data:`hagmil.progress.Progress`."""
        self._bars.update(self._patches, description=f"  stage {stage}", completed=done, total=total)

    def slide_done(self) -> None:
        """Count one slide as done."""
        self._bars.advance(self._slides)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(line, highlight=False, markup=False)


class StepProgress(Bars):
    """One bar a step on standard error; called with the step, how much of it is done, and how much there is."""

    def __init__(self) -> None:
        super().__init__(transient=False)
        self._steps: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show how far a step is."""
        if step not in self._steps:
            self._steps[step] = self._bars.add_task(step)
        self._bars.update(self._steps[step], completed=done, total=total)
