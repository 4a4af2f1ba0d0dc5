"""hagmil export-backbone: a patch encoder as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hagmil.cli import _common as common


def export_backbone(
    name: Annotated[
        str,
        typer.Argument(help="tiny, resnet50-trunc, timm:<model>, or the path of an .onnx file.", metavar="NAME"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: backbone.onnx and backbone.json.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help='A .pth or .safetensors file; "random" and "hub" must be said.',
            show_default=False,
        ),
    ] = None,
    patch_px: Annotated[
        int | None,
        typer.Option("--patch-px", help="Patch size of a timm model that takes one alone.", show_default=False),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option("--mean", help="R,G,B of pixels in 0..1, for an ONNX encoder of floats.", show_default=False),
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="R,G,B, as for --mean.", show_default=False)] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Which output of an ONNX encoder to take.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")] = False,
) -> None:
    """Write a patch encoder as ONNX: uint8 RGB patches in, normalisation inside, features out."""
    from hagmil.export.backbones.export_backbone import export_backbone as export

    card = export(
        name,
        weights,
        out,
        patch_px=patch_px,
        mean=_channels("--mean", mean),
        std=_channels("--std", std),
        output=output,
        overwrite=overwrite,
    )
    common.stdout().print(f"{card.name}: {card.features} features, weights {card.weights}; {out / card.onnx}")


def _channels(option: str, text: str | None) -> tuple[float, float, float] | None:
    from hagmil.errors import UsageError

    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f'{option} "{text}" must be three numbers: R,G,B') from error
    return red, green, blue
