"""Options, tables and progress bars that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

_LONGEST_S = 10_000_000

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log each step to standard error.")]
Slides = Annotated[
    list[str] | None,
    typer.Argument(help="Slide files, folders or globs.", metavar="SLIDES...", show_default=False),
]
SlideTable = Annotated[
    Path | None,
    typer.Option(
        "--slides", help="CSV of slides with columns slide_id, path and optionally spacing_um.", show_default=False
    ),
]
SpacingUm = Annotated[
    float | None,
    typer.Option(
        "--spacing-um",
        help="Level-0 spacing in micrometres per pixel; overrides the slide's metadata.",
        show_default=False,
    ),
]
Provider = Annotated[str, typer.Option("--provider", help="Execution provider: cpu, cuda or tensorrt.")]
BackboneProvider = Annotated[str, typer.Option("--provider", help="Execution provider: cpu or cuda.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Patches per backbone batch. Default: 16 to 64 on a CPU, depending on the patch size; 64 on a GPU.",
        show_default=False,
    ),
]
Readers = Annotated[
    int | None,
    typer.Option(
        "--readers",
        min=1,
        help="Threads that read patches. Default: 2 with a CPU; with a GPU all cores but one, between 2 and 8.",
        show_default=False,
    ),
]
MaskDevice = Annotated[
    str, typer.Option("--mask-device", help="Device that computes tissue masks: cpu, or cuda (needs cupy).")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="CPU threads of each ONNX Runtime session. Default: all cores.", show_default=False
    ),
]
Keep = Annotated[
    int | None,
    typer.Option(
        "--keep",
        min=1,
        help="Patches kept at every stage except the last. Default: the numbers in the bundle.",
        show_default=False,
    ),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", help="Bundle folder. Default: the built-in demonstration model.", show_default=False),
]

TrtFlavour = Annotated[
    str | None,
    typer.Option("--trt-flavour", help="tensorrt or tensorrt-rtx. Default: the installed one.", show_default=False),
]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild", help="With --provider tensorrt: build engines for this machine if the bundle has none that fit."
    ),
]

MaxMissing = Annotated[
    int,
    typer.Option(
        "--max-missing",
        min=0,
        help="Largest number of patches that are left out of a slide because tiles of tissue have no bytes.",
    ),
]


def _seconds(value: float | None) -> float | None:
    if value is not None and not 0 < value <= _LONGEST_S:
        raise typer.BadParameter(f"{value:g} is not a number of seconds above 0 and up to {_LONGEST_S:,}")
    return value


TimeoutS = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        callback=_seconds,
        help="Seconds that a slide may take; a slide that takes longer fails. Default: no limit.",
        show_default=False,
    ),
]

EXIT_SOME_SLIDES = 3
"""Exit code of a run that finished although some slides were rejected or failed."""


def megabytes(count: int | None) -> str:
    """Format a number of bytes as MB (10^6 bytes) for a table; empty for None."""
    return "" if count is None else f"{count / 1e6:.1f}"


def stdout() -> Console:
    """Return a console that writes to standard output."""
    from rich.console import Console

    return Console(soft_wrap=True)


def table(*heads: str, title: str | None = None) -> Table:
    """Return an empty table without borders.

    Args:
        heads: column headings; their text may contain rich markup, as may the cells.
        title: text above the table.
    """
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for head in heads:
        view.add_column(head, overflow="fold")
    return view


class Bars:
    """Progress bars on standard error, shown inside a ``with`` block.

    Args:
        transient: whether to remove the bars at the end of the block.
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
    """Two progress bars: finished slides, and patches of the current stage.

    Args:
        total: number of slides.
        what: label of the bar over slides.
    """

    def __init__(self, total: int, what: str) -> None:
        super().__init__(transient=True)
        self._slides = self._bars.add_task(what, total=total)
        self._patches = self._bars.add_task("patches", total=None)

    def patches(self, stage: str, done: int, total: int) -> None:
        """Update the bar over patches; see :data:`hagmil.progress.Progress`."""
        self._bars.update(self._patches, description=f"  stage {stage}", completed=done, total=total)

    def slide_done(self) -> None:
        """Advance the bar over slides by one."""
        self._bars.advance(self._slides)

    def print_line(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(line, highlight=False, markup=False)


class StepProgress(Bars):
    """One progress bar per step; a progress callback that takes the step, the amount done and the total."""

    def __init__(self) -> None:
        super().__init__(transient=False)
        self._steps: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        """Update the bar of a step; add the bar on the first call."""
        if step not in self._steps:
            self._steps[step] = self._bars.add_task(step)
        self._bars.update(self._steps[step], completed=done, total=total)
