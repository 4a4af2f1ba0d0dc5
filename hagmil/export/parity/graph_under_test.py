"""ONNX graphs opened for a comparison: unmodified, and with every operation rounded to 16 bits."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from hagmil._files import temporary_folder
from hagmil.bundle import Precision
from hagmil.export.graph import save
from hagmil.export.parity.compare import GraphUnderTest
from hagmil.export.passes.rounded import rounded
from hagmil.runtime.sessions import Session, open_session


def open_under_test(graph: Path, precision: Precision) -> GraphUnderTest:
    """Open a graph for :func:`hagmil.export.parity.compare.compare`.

    Args:
        graph: the ONNX file.
        precision: of the graph's inner values; fp16 graphs also run with every operation rounded.
    """
    run = open_session(graph, threads=torch.get_num_threads()).run
    return GraphUnderTest(run, open_rounded(graph).run if precision == "fp16" else None)


def open_rounded(graph: Path) -> Session:
    """Open a CPU session that rounds every operation of a half-precision graph, as 16-bit arithmetic does.

    Args:
        graph: the ONNX file; a float32 graph runs unmodified.
    """
    with temporary_folder("rounded") as folder:
        twin = folder / graph.name
        save(rounded(onnx.load(graph)), twin)
        return open_session(twin, threads=torch.get_num_threads())
