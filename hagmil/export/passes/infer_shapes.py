"""Types and shapes of inner values, noted in the graph.

Requires a graph whose operators say what they give. Ensures that every inner value has its type and, where it can be
known, its shape, with the contract's words for dynamic axes; nodes and weights stay as they are.
"""

from __future__ import annotations

import onnx

from hagmil.export.passes.types import inferred


def infer_shapes(model: onnx.ModelProto) -> None:
    """Note types and shapes anew.

    Raises:
        BundleError: types of a node's operands do not fit together.
    """
    del model.graph.value_info[:]
    found = inferred(model).graph.value_info
    model.graph.value_info.extend(found)
