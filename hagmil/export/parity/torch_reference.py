"""Torch modules as functions of NumPy arrays, the references that graphs are compared with."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from hagmil.export.parity.compare import Run
from hagmil.spec import STAGE_INPUTS, Kind, TensorSpec
from hagmil.trainer.models.registry import output_specs


def torch_run(
    module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, dtype: torch.dtype
) -> Run:
    """Return a function that runs a copy of a module, in evaluation mode and in a given precision.

    Args:
        module: takes tensors in the order of ``inputs`` and returns a tuple of tensors in the order of ``outputs``.
        inputs: specifications of the inputs; floating-point inputs are converted to ``dtype``.
        outputs: specifications of the outputs.
        dtype: ``torch.float32`` or ``torch.float64``.
    """
    copy = deepcopy(module).to(dtype).eval()

    def run(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = [torch.from_numpy(arrays[spec.name]) for spec in inputs]
        with torch.inference_mode():
            values = copy(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors))
        return {spec.name: value.contiguous().numpy() for spec, value in zip(outputs, values, strict=True)}

    return run


class TorchStage:
    """A torch stage model with the interface of :class:`hagmil.runtime.sessions.Session`, in float32.

    Args:
        model: the stage model.
        kind: kind of the model; selects its output tensors.
    """

    provider = "torch"
    on_device = False

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        self._run = torch_run(model, STAGE_INPUTS, output_specs(model, kind), dtype=torch.float32)

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the inputs, by name."""
        return {spec.name: spec.axes for spec in STAGE_INPUTS}

    def run(self, inputs: dict[str, NDArray[Any]], *, last: bool = False) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Run the model once; ``last`` has no effect."""
        return dict(self._run(inputs))
