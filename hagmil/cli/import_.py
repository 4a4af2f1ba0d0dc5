"""hagmil import: convert a checkpoint of the published code."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hagmil.cli import _common as common


class KindName(StrEnum):
    """A kind of model, as an option of the command line."""

    hag_mil = "hag-mil"
    hmil = "hmil"
    mean = "mean"
    max = "max"
    abmil = "abmil"
    clam_sb = "clam-sb"
    clam_mb = "clam-mb"
    transmil = "transmil"
    dsmil = "dsmil"
    stamp = "stamp"
    auto = "auto"


class NystromRows(StrEnum):
    """Rows of TransMIL's attention, as an option of the command line."""

    first = "first"
    last = "last"


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of published code.", metavar="CKPT")],
    kind: Annotated[
        KindName,
        typer.Option("--kind", help="Kind of the model; auto recognises all but hag-mil and hmil, and says why."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint.", metavar="CHECKPOINT")],
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Names of the classes in the order of the logits: a,b,c; for HMIL, the fine classes.",
            show_default=False,
        ),
    ] = None,
    fine_to_coarse: Annotated[
        str | None,
        typer.Option(
            "--fine-to-coarse",
            help="HMIL: coarse class of each fine class: fine:coarse,fine:coarse,... or 0,0,1,...",
            show_default=False,
        ),
    ] = None,
    spacing_um: Annotated[
        str | None,
        typer.Option(
            "--spacing-um",
            help="Micrometres per pixel of each stage, coarse to fine, or of the finest only.",
            show_default=False,
        ),
    ] = None,
    patch_px: Annotated[
        int | None, typer.Option("--patch-px", help="Side of a patch in pixels.", show_default=False)
    ] = None,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="HAG-MIL: patches kept at each stage except the last.")
    ] = 10000,
    backbone: Annotated[
        Path | None,
        typer.Option(
            "--backbone", help="The backbone of the features that it was trained on, if known.", show_default=False
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads",
            min=1,
            help="stamp: attention heads, if the file does not contain them. Default: 8.",
            show_default=False,
        ),
    ] = None,
    nystrom_rows: Annotated[
        NystromRows | None,
        typer.Option(
            "--nystrom-rows",
            help="transmil: rows that the attention returned in training: first (nystrom-attention 0.0.9, which "
            "TransMIL pins) or last (from 0.0.10 on). Default: first for files of TransMIL, last for others.",
            show_default=False,
        ),
    ] = None,
    masked: Annotated[
        bool, typer.Option("--masked", help="stamp: hide the class token from tiles, as STAMP 2.0 and 2.1 predict.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Convert a checkpoint of published code, executing nothing in it.

    Reads HAG-MIL, HMIL, and the heads of CLAM, AttentionDeepMIL, TransMIL, DSMIL, STAMP and MIL-Lab. Widths, stages and
    number of classes follow from the shapes of the weights. All else comes from the options. If an option is missing, a
    HAG-MIL or HMIL model with the shape of the published ones gets their values.
    """
    from hagmil.bundle import open_backbone
    from hagmil.trainer.published.defaults import parse_fine_to_coarse
    from hagmil.trainer.published.heads.found_head import HeadOptions
    from hagmil.trainer.published.import_checkpoint import ImportOptions, import_checkpoint

    options = ImportOptions(
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        fine_to_coarse=None if fine_to_coarse is None else parse_fine_to_coarse(fine_to_coarse),
        spacing_um=None if spacing_um is None else _spacings(spacing_um),
        patch_px=patch_px,
        keep=keep,
        backbone=None if backbone is None else open_backbone(backbone),
        head=HeadOptions(heads=heads, nystrom_rows=None if nystrom_rows is None else nystrom_rows.value, masked=masked),
    )
    card = import_checkpoint(checkpoint, kind.value, out, options, overwrite=overwrite)
    stages = ", ".join(f"{stage.spacing_um:g} um/px" for stage in card.stages)
    if card.imported is not None and card.imported.recognised_by is not None:
        common.stdout().print(f"recognised by {card.imported.recognised_by}", markup=False, highlight=False)
    common.stdout().print(f"{card.kind}: {', '.join(card.classes)}; {stages}; patches of {card.patch_px} px; {out}")


def _spacings(text: str) -> list[float]:
    from hagmil.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f'--spacing-um "{text}" must be a number or several: 0.25 or 1,0.5,0.25') from error
