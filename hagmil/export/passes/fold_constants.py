"""Whatever depends on weights alone is computed once, at export.

Requires a graph in memory, as the exporter leaves it: its own folding passes over large tensors. Ensures equal outputs
from fewer nodes: a slice of a weight becomes a weight, and what nothing uses any more is gone. The folding is
onnxscript's.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer

LARGEST_BYTES = 1 << 30
"""Tensors above this are left as they are: a graph must not grow by constants that a node makes in no time."""


def fold_constants(model: onnx_ir.Model) -> None:
    """Fold constants of a graph in place."""
    optimizer.fold_constants(model, input_size_limit=LARGEST_BYTES, output_size_limit=LARGEST_BYTES)
    RemoveUnusedNodesPass()(model)
