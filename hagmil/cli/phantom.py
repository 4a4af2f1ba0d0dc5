"""hagmil phantom: synthetic slides with known lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hagmil.cli import _common as common


def phantom(
    out_dir: Annotated[Path, typer.Argument(help="Output folder of the cohort.", metavar="OUT_DIR")],
    slides: Annotated[int, typer.Option("--slides", min=1, help="Number of slides.")] = 8,
    size: Annotated[int, typer.Option("--size", min=256, help="Width and height of a slide in level-0 pixels.")] = 4096,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the cohort.")] = 0,
    spacing_um: Annotated[float, typer.Option("--spacing-um", help="Level-0 spacing in micrometres per pixel.")] = 0.5,
    classes: Annotated[
        str, typer.Option("--classes", help="binary (normal, tumour) or hierarchy (lesion subtypes).")
    ] = "binary",
) -> None:
    """Make synthetic H&E-like slides: OUT_DIR/slides, lesion masks in OUT_DIR/masks, and OUT_DIR/labels.csv."""
    from hagmil.phantom import write_cohort

    with common.SlideProgress(slides, "phantoms") as display:
        truths = write_cohort(
            out_dir,
            slides=slides,
            size_px=size,
            seed=seed,
            spacing_um=spacing_um,
            classes=classes,
            progress=lambda _done, _total, _name: display.slide_done(),
        )
    common.stdout().print(f"{len(truths)} phantoms in {out_dir / 'slides'}; labels: {out_dir / 'labels.csv'}")
