"""hagmil split: a cohort's slides to training, validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hagmil.cli import _common as common


def split(
    labels: Annotated[Path, typer.Argument(help="CSV of slide_id, case_id, label.", metavar="LABELS.csv")],
    out: Annotated[Path, typer.Option("--out", help="Folder of splits_0.csv and so on.", metavar="DIR")],
    folds: Annotated[
        int | None, typer.Option("--folds", help="k folds for cross-validation.", show_default=False)
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="Random splits, in place of folds; 1 by default.", show_default=False)
    ] = None,
    val: Annotated[float | None, typer.Option("--val", help="Share to validate on; 0.1.", show_default=False)] = None,
    test: Annotated[float | None, typer.Option("--test", help="Share to test on; 0.1.", show_default=False)] = None,
    held_out_sites: Annotated[
        list[str] | None,
        typer.Option("--held-out-site", help="Test on this site (column site of the labels); repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other splits.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace splits that are there.")] = False,
) -> None:
    """Split a cohort: stratified by class, patients never across parts."""
    from hagmil.errors import UsageError
    from hagmil.trainer.data.labels import PARTS, read_labels
    from hagmil.trainer.data.splits import make_folds, make_splits, read_sites, write_splits

    if folds is not None and (count, val, test) != (None, None, None):
        raise UsageError("--folds decides the parts itself: leave out --count, --val and --test")
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
    for stale in out.glob("splits_*.csv"):  # of more folds than now
        stale.unlink()
    console = common.stdout()
    for path, made in zip(write_splits(out, splits), splits, strict=True):
        sizes = ", ".join(f"{len(made.part(part))} {part}" for part in PARTS)
        console.print(f"{path}: {sizes} slides", markup=False, highlight=False)
