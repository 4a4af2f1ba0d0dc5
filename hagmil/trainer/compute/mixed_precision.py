"""Mixed precision: matrix products of a training step in bfloat16; weights, losses and optimisers in float32.

bfloat16 has the range of float32, so losses need no scaling. Evaluation stays in float32, so that validation chooses
the best weights in the precision of the deployed model.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeVar

import torch

from hagmil.errors import EnvironmentLacks

TrainingPrecision = Literal["fp32", "bf16"]

_FIRST_WITH_BF16 = (8, 0)
"""Lowest compute capability with bfloat16 in hardware; older GPUs emulate it."""

_Output = TypeVar("_Output", bound=NamedTuple)


def check_precision(precision: TrainingPrecision, device: torch.device) -> None:
    """Check that a device supports a precision. All CPUs support bfloat16, though some only slowly.

    Raises:
        EnvironmentLacks: the GPU has no bfloat16.
    """
    if precision == "fp32" or device.type == "cpu":
        return
    if torch.cuda.get_device_capability(device) < _FIRST_WITH_BF16:
        name = torch.cuda.get_device_name(device)
        raise EnvironmentLacks(f'precision is bf16, but "{name}" has no bfloat16; use precision: fp32')


def autocast(precision: TrainingPrecision, device: torch.device) -> torch.autocast:
    """The autocast context for the forward pass of a training step; it has no effect with fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def in_float32(output: _Output) -> _Output:
    """Convert model outputs to float32 for the losses; gradients pass through the conversion."""
    return output._make(tensor.float() for tensor in output)
