"""Half-precision stage models: 16-bit computation with float32 inputs and outputs.

The casts are part of the torch module that is exported. Converting the exported graph instead would make it invalid if
an output is also used inside the graph.
"""

from __future__ import annotations

from copy import deepcopy
from typing import get_args

import torch
from torch import Tensor, nn

from hagmil.bundle import Precision
from hagmil.errors import UsageError

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def parse_precision(text: str) -> Precision:
    """Parse the value of ``--precision``.

    Raises:
        UsageError: the value is unknown, or cannot be exported.
    """
    for precision in PRECISIONS:
        if text == precision:
            return precision
    why = " (bundles are checked on ONNX Runtime's CPU provider, which does not support bf16)"
    raise UsageError(
        f'precision "{text}" cannot be exported{why if text == "bf16" else ""}; choose one of {", ".join(PRECISIONS)}',
        code="precision",
    )


def with_precision(model: nn.Module, precision: Precision) -> nn.Module:
    """Return a copy of a model that computes in a given precision, in evaluation mode; for fp32, the model itself."""
    return model if precision == "fp32" else ReducedPrecision(model).eval()


class ReducedPrecision(nn.Module):
    """A copy of a module that computes in a smaller floating-point type.

    Args:
        module: takes one tensor and returns a tuple of float tensors.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.module = deepcopy(module).to(dtype).eval()
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            inputs: the input of the model; floating-point tensors are converted, uint8 pixels are not.

        Returns:
            The outputs of the model as float32.
        """
        converted = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        return tuple(output.float() for output in self.module(converted))
