"""Remove the metadata that an exporter adds to a graph.

Requires nothing. Ensures that exports of the same weights with the same versions give the same bytes on every machine:
no stack traces, paths or names of the exporter's passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove metadata and documentation from a graph and all its parts."""
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
