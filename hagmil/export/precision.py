"""Half precision: a model whose insides compute in 16 bits and whose edges stay float32, as the contract wants them.

The casts stand in the module that is exported. Converting a finished graph instead makes it invalid where an output is
also used inside.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


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
