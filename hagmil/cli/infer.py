"""hagmil infer: slides to verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hagmil.runtime.result import Result

_DEFAULT_OUT = Path("hagmil-results")


def infer(
    slides: common.Slides = None,
    table: common.SlideTable = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A bundle; without it the built-in demonstration model.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = _DEFAULT_OUT,
    spacing_um: common.SpacingUm = None,
    provider: common.Provider = "cpu",
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=1, help="Patches kept at every stage but the last.", show_default=False),
    ] = None,
    batch_size: common.BatchSize = 64,
    readers: common.Readers = 2,
    threads: common.Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave slides alone that have their result.")] = False,
) -> None:
    """Take slides through a bundle's stages, coarse to fine, and write a verdict for each.

    Results: OUT/results.csv, and OUT/<slide_id>/ with result.json, heatmap.png, attention.h5 and regions.geojson.
    """
    from hagmil.runtime.encode import EncodeOptions
    from hagmil.runtime.inputs import slide_requests
    from hagmil.runtime.model import builtin_bundle, load_model
    from hagmil.runtime.predict import PredictOptions, predict_many

    requests = slide_requests(slides or [], table=table, spacing_um=spacing_um)
    loaded = load_model(model or builtin_bundle(), provider=provider, threads=threads)
    options = PredictOptions(
        encode=EncodeOptions(batch_size=batch_size, reader_threads=readers), keep=keep, resume=resume
    )
    if model is None:
        typer.secho(f"Built-in demonstration model: {loaded.bundle.manifest.intended_use}", fg="yellow", err=True)
    with common.SlideProgress(len(requests), "slides") as display:
        results = predict_many(
            requests, loaded, out, options, on_result=lambda _: display.slide_done(), progress=display.patches
        )
    _show(results, out)
    if any(result.status != "ok" for result in results):
        raise typer.Exit(common.EXIT_SOME_SLIDES)


def _show(results: Sequence[Result], out: Path) -> None:
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("slide", "status", "verdict", "probability", "seconds", "why / where"):
        view.add_column(head, overflow="fold")
    for result in results:
        good = result.status == "ok"
        probability = f"{result.probabilities[result.prediction]:.3f}" if result.prediction else ""
        view.add_row(
            result.slide_id,
            f"[{'green' if good else 'red'}]{result.status}[/]",
            result.prediction or "",
            probability,
            f"{result.timing_s.get('total', 0):.1f}",
            str(out / result.slide_id / "heatmap.png") if good else f"{result.code}: {result.message}",
        )
    console = common.stdout()
    console.print(view)
    failed = sum(result.status != "ok" for result in results)
    console.print(f"{len(results) - failed} of {len(results)} slides have a verdict; table: {out / 'results.csv'}")
