"""Graphs as they are held against their source: as they are, and with every operation rounded to 16 bits."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch

from hagmil.bundle import Precision
from hagmil.export.graph import save
from hagmil.export.parity.compare import GraphUnderTest
from hagmil.export.passes.rounded import rounded
from hagmil.runtime.sessions import Session, open_session


def open_under_test(graph: Path, precision: Precision) -> GraphUnderTest:
    """A graph, ready to be held against its source.

    Args:
        graph: the ONNX file.
        precision: of its insides.
    """
    here = open_session(graph, threads=torch.get_num_threads()).run
    return GraphUnderTest(here, open_rounded(graph).run if precision == "fp16" else None)


def open_rounded(graph: Path) -> Session:
    """A session on the CPU that rounds a half-precision graph's every operation, as 16-bit arithmetic would.

    Args:
        graph: the ONNX file; one in float32 runs as it is.
    """
    with TemporaryDirectory(prefix="hagmil-rounded-") as folder:
        twin = Path(folder) / graph.name
        save(rounded(onnx.load(graph)), twin)
        return open_session(twin, threads=torch.get_num_threads())
