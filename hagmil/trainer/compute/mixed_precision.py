"""Mixed precision: a training step's matrix products in bfloat16, its weights, losses and optimisers in float32.

bfloat16 has float32's range, so no loss needs to be scaled. Evaluation does not use it: what validation chooses the
best weights by is what is deployed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeVar

import torch

from hagmil.errors import EnvironmentLacks

TrainingPrecision = Literal["fp32", "bf16"]

_FIRST_WITH_BF16 = (8, 0)
"""Compute capability; older GPUs only emulate it."""

_Output = TypeVar("_Output", bound=NamedTuple)


def check_precision(precision: TrainingPrecision, device: torch.device) -> None:
    """See that a device has what was asked for; every CPU has bfloat16, if not a fast one.

    Raises:
        EnvironmentLacks: it has not.
    """
    if precision == "fp32" or device.type == "cpu":
        return
    if torch.cuda.get_device_capability(device) < _FIRST_WITH_BF16:
        name = torch.cuda.get_device_name(device)
        raise EnvironmentLacks(f'precision: bf16 was asked for, but "{name}" has no bfloat16; use precision: fp32')


def autocast(precision: TrainingPrecision, device: torch.device) -> torch.autocast:
    """A context for a training step's forward pass; with fp32 it changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def in_float32(output: _Output) -> _Output:
    """A model's outputs for the losses: float32, whatever they were computed in; gradients go back through it."""
    return output._make(tensor.float() for tensor in output)
