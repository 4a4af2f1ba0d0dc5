"""Torch modules as the sources that graphs are held against: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from hagmil.export.parity import Run
from hagmil.spec import TensorSpec


def torch_run(
    module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, dtype: torch.dtype
) -> Run:
    """Make a function that runs a copy of a module in evaluation mode and in a given precision.

    Args:
        module: takes tensors in the order of ``inputs``, gives a tuple of them in that of ``outputs``.
        inputs: names of the inputs; those of a floating type are converted to ``dtype``.
        outputs: names of the outputs.
        dtype: ``torch.float32``, or ``torch.float64`` for a reference.
    """
    copy = deepcopy(module).to(dtype).eval()

    def run(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = [torch.from_numpy(arrays[spec.name]) for spec in inputs]
        with torch.inference_mode():
            values = copy(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors))
        return {spec.name: value.numpy() for spec, value in zip(outputs, values, strict=True)}

    return run
