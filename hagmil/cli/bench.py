"""hagmil bench: measure the time of each step on one slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.runtime.bench.report import BenchReport

_DEFAULT_OUT = Path("hagmil-bench")
_COLOURS = {"better": "green", "worse": "red", "neutral": "bright_black"}


def bench(
    slide: Annotated[
        str | None,
        typer.Argument(
            help="Slide file. Default: a phantom made for the benchmark.", metavar="[SLIDE]", show_default=False
        ),
    ] = None,
    model: common.Model = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder of the report. Default: hagmil-bench.", show_default=False),
    ] = None,
    spacing_um: common.SpacingUm = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider",
            help="cpu, cuda or tensorrt; repeatable. Default: every provider of this machine.",
            show_default=False,
        ),
    ] = None,
    batch_size: common.BatchSize = None,
    readers: common.Readers = None,
    threads: common.Threads = None,
    mask_device: common.MaskDevice = "cpu",
    keep: common.Keep = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs after one warm-up.")] = 3,
    patches: Annotated[
        int, typer.Option("--patches", min=1, help="Maximum number of patches in a measurement.")
    ] = 2048,
    phantom_px: Annotated[
        int, typer.Option("--phantom-px", min=1024, help="Width and height of the phantom in level-0 pixels.")
    ] = 4096,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also measure over batch sizes, threads and bag sizes.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="Compare two existing reports instead of measuring.", metavar="A.json B.json"),
    ] = None,
) -> None:
    """Measure reading, tissue mask, backbone, stage models, start-up and memory, separately and together.

    Writes OUT/report.json and OUT/report.html; with --compare and --out, OUT/comparison.html.
    """
    if compare is not None:
        _compare(*compare, out)
        return
    import shlex
    import sys

    from hagmil._files import OutputFolder
    from hagmil.runtime.bench.page import write_report
    from hagmil.runtime.bench.report import HTML_NAME
    from hagmil.runtime.bench.run import BenchOptions, run_bench
    from hagmil.runtime.inference.encode import EncodeOptions

    options = BenchOptions(
        slide=slide,
        bundle=model,
        spacing_um=spacing_um,
        providers=tuple(provider or ()),
        encode=EncodeOptions(batch_size=batch_size, reader_threads=readers),
        threads=threads,
        mask_device=mask_device,
        keep=keep,
        repeats=repeats,
        patches=patches,
        phantom_px=phantom_px,
        sweep=sweep,
        command=shlex.join(["hagmil", *sys.argv[1:]]),
    )
    folder = out or _DEFAULT_OUT
    OutputFolder.open(folder)
    with common.StepProgress() as progress:
        report = run_bench(options, progress)
    write_report(folder, report)
    _show(report)
    common.stdout().print(f"report: {folder / HTML_NAME}", markup=False, highlight=False)


def _show(report: BenchReport) -> None:
    from rich.text import Text

    from hagmil.runtime.bench.figures import figures_of, limiting_step, shown

    view = common.table("", "figure", "median", "range of runs")
    group = ""
    for figure in figures_of(report):
        runs = (
            ""
            if figure.low == figure.high
            else f"{shown(figure.low, figure.unit)} to {shown(figure.high, figure.unit)}"
        )
        head = "" if figure.group == group else figure.group
        group = figure.group
        view.add_row(Text(head, "bold"), Text(figure.name), shown(figure.value, figure.unit), runs)
    console = common.stdout()
    console.print(view)
    console.print(Text(limiting_step(report)))
    if report.skipped:
        console.print(Text(f"skipped: {', '.join(report.skipped)}; see the report for the reasons", "bright_black"))


def _compare(first: Path, second: Path, out: Path | None) -> None:
    from rich.text import Text

    from hagmil._files import write_text
    from hagmil.runtime.bench.comparison import change_in_words, render_comparison, value_in_words
    from hagmil.runtime.bench.figures import differences, pairs_of
    from hagmil.runtime.bench.report import COMPARISON_NAME, read_report

    a, b = read_report(first), read_report(second)
    view = common.table("", "figure", "A", "B", "B is")
    group = ""
    for pair in pairs_of(a, b):
        head = "" if pair.any.group == group else pair.any.group
        group = pair.any.group
        words, kind = change_in_words(pair)
        view.add_row(
            Text(head, "bold"),
            Text(pair.any.name),
            value_in_words(pair.first),
            value_in_words(pair.second),
            Text(words, _COLOURS[kind]),
        )
    console = common.stdout()
    console.print(Text(f"A: {first}\nB: {second}"))
    console.print(view)
    for note in differences(a, b):
        console.print(Text(f"the reports differ in {note}", "yellow"))
    if out is not None:
        write_text(out / COMPARISON_NAME, render_comparison(a, b, (str(first), str(second))))
        console.print(f"comparison: {out / COMPARISON_NAME}", markup=False, highlight=False)
