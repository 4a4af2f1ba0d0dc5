"""What an exporter notes beside a graph, removed.

Requires nothing. Ensures that the same weights give the same bytes, wherever they are exported with the same versions:
no stack traces, no paths of the machine, no names of the exporter's passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove metadata and documentation from a graph and all of its parts."""
    graph = model.graph
    holders: Iterable[Any] = (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    )
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""
