"""hagmil export-backbone: write a patch encoder as ONNX."""

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
    out: Annotated[Path, typer.Option("--out", help="Output folder of backbone.onnx, backbone.json and parity.json.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help='A .pth or .safetensors file, "random", or for timm models "hub". tiny has weights of its own.',
            show_default=False,
        ),
    ] = None,
    patch_px: Annotated[
        int | None,
        typer.Option(
            "--patch-px", help="Patch size in pixels, for timm models with a fixed input size.", show_default=False
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            help="Mean of each channel, R,G,B in 0..1, for ONNX encoders with float input.",
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", help="Standard deviation of each channel, like --mean.", show_default=False)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Output tensor to use, for ONNX encoders with several.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
) -> None:
    """Write a patch encoder as ONNX that maps uint8 RGB patches to features, normalisation included."""
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
