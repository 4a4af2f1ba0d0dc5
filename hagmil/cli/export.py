"""hagmil export: a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hagmil.cli import _common as common


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of hagmil train.", metavar="CHECKPOINT")],
    backbone: Annotated[Path, typer.Option("--backbone", help="The folder that export-backbone wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")] = False,
) -> None:
    """Turn a checkpoint into a bundle: ONNX models proven against PyTorch, manifest, digests and self-test."""
    from hagmil.export.pipeline import export_bundle

    report = export_bundle(checkpoint, backbone, out, overwrite=overwrite)
    common.stdout().print(report)
