"""hagmil infer: verdicts for slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from hagmil.runtime.results.result import Result

_DEFAULT_OUT = Path("hagmil-results")


def infer(
    slides: common.Slides = None,
    table: common.SlideTable = None,
    model: common.Model = None,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = _DEFAULT_OUT,
    spacing_um: common.SpacingUm = None,
    provider: common.Provider = "cpu",
    keep: common.Keep = None,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive",
            help="Keep 4, 8, 16, ... patches until the verdict is sure; --keep is then the largest number. "
            "Needs a bundle that hagmil eval --calibrate has calibrated.",
        ),
    ] = False,
    batch_size: common.BatchSize = None,
    readers: common.Readers = None,
    threads: common.Threads = None,
    mask_device: common.MaskDevice = "cpu",
    rebuild: common.Rebuild = False,
    trt_flavour: common.TrtFlavour = None,
    max_missing: common.MaxMissing = 0,
    timeout_s: common.TimeoutS = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the results in OUT, and skip slides whose result would be the same."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results that the slides already have in OUT.")
    ] = False,
) -> None:
    """Classify slides with a bundle and write a verdict for each.

    Writes OUT/results.csv and, for each slide, OUT/<slide_id>/ with result.json, heatmap.png, attention.h5 and
    regions.geojson; additive models also give evidence_<class>.png. If OUT holds results already, pass --resume or
    --overwrite; both keep the results of other slides.
    """
    from hagmil.errors import UsageError
    from hagmil.runtime.inference.encode import EncodeOptions
    from hagmil.runtime.inference.loaded_bundle import builtin_bundle, load_model
    from hagmil.runtime.inputs import slide_requests
    from hagmil.runtime.predict import PredictOptions, predict_requests
    from hagmil.runtime.results.output_folder import require_choice
    from hagmil.runtime.tissue.kernels import kernels_on

    if provider != "tensorrt" and (rebuild or trt_flavour):
        raise UsageError("--rebuild and --trt-flavour need --provider tensorrt")
    requests = slide_requests(slides or [], table=table, spacing_um=spacing_um)
    require_choice(out, resume=resume, overwrite=overwrite)  # before the model is loaded
    mask_kernels = kernels_on(mask_device)
    loaded = load_model(
        model or builtin_bundle(), provider=provider, threads=threads, rebuild=rebuild, trt_flavour=trt_flavour
    )
    options = PredictOptions(
        encode=EncodeOptions(batch_size=batch_size, reader_threads=readers),
        keep=keep,
        adaptive=adaptive,
        resume=resume,
        overwrite=overwrite,
        mask_kernels=mask_kernels,
        max_missing=max_missing,
        timeout_s=timeout_s,
    )
    if model is None:
        typer.secho(f"Built-in demonstration model: {loaded.bundle.manifest.intended_use}", fg="yellow", err=True)
    with common.SlideProgress(len(requests), "slides") as display:
        results = predict_requests(
            requests, loaded, out, options, on_result=lambda _: display.slide_done(), progress=display.patches
        )
    _show(results, out)
    if any(result.status != "ok" for result in results):
        raise typer.Exit(common.EXIT_SOME_SLIDES)


def _show(results: Sequence[Result], out: Path) -> None:
    from rich.text import Text

    adaptive = any(result.sure is not None for result in results)
    view = common.table("slide", "status", "verdict", "probability", *(["sure", "kept"] if adaptive else []), "seconds")
    for result in results:
        view.add_row(
            Text(result.slide_id),
            Text(result.status, style="green" if result.status == "ok" else "red"),
            Text(result.prediction or result.code or ""),
            f"{result.probabilities[result.prediction]:.3f}" if result.prediction else "",
            *(_certainty(result) if adaptive else ()),
            f"{result.timing_s.get('total', 0):.1f}",
        )
    console = common.stdout()
    console.print(view)
    bad = [result for result in results if result.status != "ok"]
    for result in bad:
        console.print(Text(f"{result.slide_id}: {result.message}"))
    _show_warnings(results)
    console.print(f"{len(results) - len(bad)} of {len(results)} slides have a verdict; results: {out / 'results.csv'}")
    if adaptive:
        console.print(f"{sum(result.sure is False for result in results)} of these verdicts are not sure")
    if len(bad) < len(results):
        console.print(f"heatmaps: {out}/<slide>/heatmap.png")


def _certainty(result: Result) -> tuple[Text, str]:
    """The cells of an adaptive run: whether the verdict is sure, and the number of kept patches."""
    from rich.text import Text

    if result.sure is None:
        return Text(""), ""
    return Text("sure" if result.sure else "unsure", style="green" if result.sure else "yellow"), str(result.keep_used)


def _show_warnings(results: Sequence[Result]) -> None:
    """Print the first warning of each code, and for how many other slides there is one."""
    from hagmil.runtime.inference.slide_warnings import warning_code

    by_code: dict[str, list[str]] = {}
    for result in results:
        for warning in result.warnings:
            by_code.setdefault(warning_code(warning), []).append(f"{result.slide_id}: {warning}")
    for first, *others in by_code.values():
        more = f" (and {len(others)} more slide{'s' * (len(others) > 1)} with this warning)" if others else ""
        typer.secho(f"{first}{more}", fg="yellow", err=True)
