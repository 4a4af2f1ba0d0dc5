"""Half-precision backbones: conversion of the float32 ONNX graph, and comparison with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

from hagmil.export.backbones.export_backbone import backbone_cases
from hagmil.export.graph import save
from hagmil.export.parity.compare import TOLERANCES, ParityRow, SourceModel, compare
from hagmil.export.parity.graph_under_test import open_under_test
from hagmil.export.passes.half_precision import to_half
from hagmil.runtime.sessions import open_session
from hagmil.selftest import BACKBONE


def write_half_backbone(source: Path, graph: Path) -> None:
    """Convert a backbone to half precision.

    Args:
        source: the float32 graph.
        graph: the file to write.

    Raises:
        BundleError: the graph cannot be converted.
    """
    save(to_half(onnx.load(source)), graph)


def check_half_parity(source: Path, graph: Path, patch_px: int) -> Iterator[tuple[ParityRow, ...]]:
    """Compare a half-precision backbone with its float32 graph over batch sizes and kinds of patches.

    Args:
        source: the float32 graph.
        graph: the half-precision graph.
        patch_px: side of a patch in pixels.

    Returns:
        An iterator over batches: the rows of each, one per tensor and run.
    """
    float32 = open_session(source, threads=torch.get_num_threads()).run
    return compare(
        BACKBONE,
        backbone_cases(((patch_px, patch_px),)),
        graph=open_under_test(graph, "fp16"),
        source=SourceModel(float32, None, "graph"),
        tolerance=TOLERANCES["fp16"],
    )
