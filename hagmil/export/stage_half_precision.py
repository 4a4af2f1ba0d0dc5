"""Half precision: a model whose insides compute in 16 bits and whose edges stay float32, as the contract wants them.

The casts stand in the module that is exported. Converting a finished graph instead makes it invalid where an output is
also used inside.
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
    """Read ``--precision``.

    Raises:
        UsageError: it is none of those that can be exported.
    """
    for precision in PRECISIONS:
        if text == precision:
            return precision
    why = " (ONNX Runtime's CPU provider, which every bundle is proven on, computes nothing in bf16)"
    raise UsageError(
        f'precision "{text}" cannot be exported{why if text == "bf16" else ""}; choose one of {", ".join(PRECISIONS)}',
        code="precision",
    )


def with_precision(model: nn.Module, precision: Precision) -> nn.Module:
    """A model whose insides compute in a given precision, in evaluation mode; float32 is the model itself."""
    return model if precision == "fp32" else ReducedPrecision(model).eval()


class ReducedPrecision(nn.Module):
    """A copy of a model with one input that computes in a smaller floating type.

    Args:
        module: takes one tensor and gives a tuple of float tensors.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.module = deepcopy(module).to(dtype).eval()
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            inputs: of the model's own type; float32 is converted, pixels (uint8) go in as they are.

        Returns:
            The model's outputs, float32.
        """
        converted = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        return tuple(output.float() for output in self.module(converted))
