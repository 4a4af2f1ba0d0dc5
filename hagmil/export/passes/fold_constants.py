"""Constant folding: compute everything that depends on weights only once, at export.

Requires a graph in memory from the exporter, which does not fold large tensors itself. Ensures the same outputs from
fewer nodes: for example, a slice of a weight becomes a weight. Unused nodes are removed. Uses onnxscript.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer

LARGEST_BYTES = 1 << 30
"""Larger tensors are not folded, because large constants make the graph grow and are fast to compute."""


def fold_constants(model: onnx_ir.Model) -> None:
    """Fold the constants of a graph in place."""
    optimizer.fold_constants(model, input_size_limit=LARGEST_BYTES, output_size_limit=LARGEST_BYTES)
    RemoveUnusedNodesPass()(model)
