"""Check a graph against the tensor contract.

Requires a graph in memory. Ensures that it is valid ONNX and that its inputs and outputs have the names, types, axes
and order of the contract; does not change the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from hagmil.errors import BundleError
from hagmil.export.graph import LARGEST_FILE_BYTES, axes_of, dtype_of, weights_bytes
from hagmil.spec import TensorSpec


def check_contract(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that a graph is valid ONNX and that its inputs and outputs follow the contract.

    The validity of graphs that are too large for a check in memory is checked when they are saved.

    Raises:
        BundleError: the graph is invalid or differs from the contract.
    """
    if weights_bytes(model) <= LARGEST_FILE_BYTES:
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise BundleError(f"not a valid ONNX graph: {error}", code="graph_invalid") from error
    for what, specs, values in (
        ("input", inputs, model.graph.input),
        ("output", outputs, model.graph.output),
    ):
        names = [value.name for value in values]
        if names != [spec.name for spec in specs]:
            raise BundleError(f"{what}s of the graph are {names}, not {[spec.name for spec in specs]}", code="contract")
        for spec, value in zip(specs, values, strict=True):
            problem = spec.mismatch(dtype_of(value), axes_of(value))
            if problem is not None:
                raise BundleError(f"{what} {spec.name} {problem}", code="contract")
