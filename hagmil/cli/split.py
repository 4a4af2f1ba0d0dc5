"""hagmil split: divide a cohort into training, validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hagmil.cli import _common as common


def split(
    labels: Annotated[
        Path, typer.Argument(help="CSV with the columns slide_id, case_id, label.", metavar="LABELS.csv")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for splits_0.csv, splits_1.csv, ...", metavar="DIR")],
    folds: Annotated[
        int | None, typer.Option("--folds", help="Number of folds for cross-validation.", show_default=False)
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", help="Number of random splits, in place of folds; default: 1.", show_default=False),
    ] = None,
    val: Annotated[
        float | None,
        typer.Option("--val", help="Share of the slides for validation; default: 0.1.", show_default=False),
    ] = None,
    test: Annotated[
        float | None, typer.Option("--test", help="Share of the slides for test; default: 0.1.", show_default=False)
    ] = None,
    held_out_sites: Annotated[
        list[str] | None,
        typer.Option(
            "--held-out-site", help="Use all slides of this site (column site of LABELS.csv) for test; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random numbers.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing splits.")] = False,
) -> None:
    """Split a cohort, stratified by class; all slides of a patient are in the same part."""
    from hagmil.errors import UsageError
    from hagmil.trainer.data.labels import PARTS, read_labels
    from hagmil.trainer.data.splits import make_folds, make_splits, read_sites, write_splits

    if folds is not None and (count, val, test) != (None, None, None):
        raise UsageError("--folds determines the shares; remove --count, --val and --test")
    if not overwrite and any(out.glob("splits_*.csv")):
        raise UsageError(f'"{out}" already holds splits; choose another folder or pass --overwrite', code="exists")
    cohort, held_out = read_labels(labels), tuple(held_out_sites or ())
    sites = read_sites(labels) if held_out else None
    if folds is not None:
        splits = make_folds(cohort, folds, seed=seed, sites=sites, held_out_sites=held_out)
    else:
        splits = make_splits(
            cohort,
            1 if count is None else count,
            val_share=0.1 if val is None else val,
            test_share=0.1 if test is None else test,
            seed=seed,
            sites=sites,
            held_out_sites=held_out,
        )
    for stale in out.glob("splits_*.csv"):  # of an earlier call with more folds
        stale.unlink()
    console = common.stdout()
    for path, made in zip(write_splits(out, splits), splits, strict=True):
        sizes = ", ".join(f"{len(made.part(part))} {part}" for part in PARTS)
        console.print(f"{path}: {sizes} slides", markup=False, highlight=False)
