"""hagmil extract: backbone features of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.runtime.extract import ExtractOutcome


def extract(
    backbone: Annotated[Path, typer.Option("--backbone", help="Backbone folder written by hagmil export-backbone.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder of the feature files.")],
    slides: common.Slides = None,
    table: common.SlideTable = None,
    stages: Annotated[
        str, typer.Option("--stages", help="Spacings of the stages in micrometres per pixel, coarse to fine.")
    ] = "2,1,0.5",
    patch_px: Annotated[
        int | None,
        typer.Option(
            "--patch-px",
            min=8,
            help="Patch size in pixels. Default: that of the backbone.",
            show_default=False,
        ),
    ] = None,
    spacing_um: common.SpacingUm = None,
    provider: common.BackboneProvider = "cpu",
    batch_size: common.BatchSize = None,
    readers: common.Readers = None,
    threads: common.Threads = None,
    mask_device: common.MaskDevice = "cpu",
    max_missing: common.MaxMissing = 0,
    timeout_s: common.TimeoutS = None,
    half: Annotated[bool, typer.Option("--half", help="Store features as float16 instead of float32.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing feature files.")] = False,
) -> None:
    """Run the backbone on every tissue patch of every stage, and write one HDF5 file per slide.

    Skips slides that already have the same features; run the command again to resume an interrupted run. A feature
    file of another slide, backbone, spacing or patch size fails its slide unless --overwrite is given.
    """
    from hagmil.runtime.extract import ExtractOptions, Extractor, extract_many, parse_stages
    from hagmil.runtime.inference.encode import EncodeOptions
    from hagmil.runtime.inputs import slide_requests
    from hagmil.runtime.tissue.kernels import kernels_on

    requests = slide_requests(slides or [], table=table, spacing_um=spacing_um)
    options = ExtractOptions(
        stages=parse_stages(stages),
        patch_px=patch_px,
        half=half,
        overwrite=overwrite,
        encode=EncodeOptions(batch_size=batch_size, reader_threads=readers),
        mask_kernels=kernels_on(mask_device),
        max_missing=max_missing,
        timeout_s=timeout_s,
    )
    extractor = Extractor.open(backbone, options, provider=provider, threads=threads)
    with common.SlideProgress(len(requests), "slides") as display:

        def _done(outcome: ExtractOutcome) -> None:
            display.slide_done()
            if outcome.status != "ok":
                display.print_line(f"{outcome.slide_id}: {outcome.status}: {outcome.message}")

        outcomes = extract_many(requests, extractor, out, on_outcome=_done, progress=display.patches)
    bad = sum(outcome.status != "ok" for outcome in outcomes)
    common.stdout().print(f"{len(outcomes) - bad} of {len(outcomes)} slides have features in {out}")
    if bad:
        raise typer.Exit(common.EXIT_SOME_SLIDES)
