"""Infer types and shapes of inner values and store them in the graph.

Requires a graph whose operators have shape inference. Ensures that every inner value has a type and, if it can be
inferred, a shape with the contract's names of dynamic axes. Does not change nodes or weights.
"""

from __future__ import annotations

import onnx

from hagmil.export.passes.types import inferred


def infer_shapes(model: onnx.ModelProto) -> None:
    """Replace the types and shapes of inner values.

    Raises:
        BundleError: the operands of a node have types that do not match.
    """
    del model.graph.value_info[:]
    found = inferred(model).graph.value_info
    model.graph.value_info.extend(found)
