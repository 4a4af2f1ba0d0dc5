"""Distributed training: several processes, started by ``torchrun``, that train the same model.

1. Every process has all models and trains on its share of the slides of each step
   (:func:`hagmil.trainer.training.sampling.steps_of_rank`).
2. Gradients are averaged before each optimiser step, so all processes take the same step and keep the same weights.
3. An evaluation distributes its slides without repetition; the results are gathered by the index of the slide.
4. Only rank 0 writes files and reports progress.

Gradients are averaged here instead of by DistributedDataParallel for three reasons: each slide takes an optimiser step
at every stage, with a forward pass other than ``forward``; the label of the slide determines which classifiers of the
instance loss are used; and blocks may be computed twice. One sum over a flat copy is explicit, and a parameter that no
process used stays without a gradient, as with Adam in one process. Communication does not overlap with the backward
pass; its time is short compared with a bag of ten thousand patches.

If a process is lost, the next collective operation of the others fails at once, or after ``TIMEOUT`` at the latest;
``torchrun`` then ends the remaining processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from hagmil.errors import EnvironmentLacks, Interrupted, UsageError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others; longer than evaluation times differ between processes."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process and the processes that train together with it.

    Args:
        rank: rank of this process, from 0.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the gradient of each parameter by its mean over processes (step 2).

        A missing gradient counts as 0; a parameter without a gradient in all processes keeps none.
        """
        if self.world_size == 1:
            return
        parameters = list(model.parameters())
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = self._sum(torch.cat([used, *(gradient.flatten() for gradient in own)]))
        users, *sums = torch.split(flat, [len(parameters), *(parameter.numel() for parameter in parameters)])
        for parameter, total, is_used in zip(parameters, sums, users.tolist(), strict=True):
            parameter.grad = (total / self.world_size).view_as(parameter) if is_used else None

    def mean(self, values: Sequence[float]) -> tuple[float, ...]:
        """The mean of each number over processes; the same in all processes."""
        if self.world_size == 1:
            return tuple(values)
        total = self._sum(torch.tensor(values, dtype=torch.float64, device=self.device))
        return tuple((total / self.world_size).tolist())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; also a barrier: no process returns before all have called it."""
        return flag if self.world_size == 1 else bool(self._sum(torch.tensor(int(flag), device=self.device)).item())

    def all_gather(self, own: _T) -> list[_T]:
        """The objects of all processes, by rank; the same in all processes."""
        if self.world_size == 1:
            return [own]
        found: list[_T | None] = [None] * self.world_size
        with _lost_process_as_interrupted():
            distributed.all_gather_object(found, own)
        return [one for one in found if one is not None]

    def _sum(self, values: Tensor) -> Tensor:
        with _lost_process_as_interrupted():
            distributed.all_reduce(values)
        return values


SINGLE_PROCESS = ProcessGroup()
"""A single process; no communication."""


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the process group of ``torchrun``, if there is one: gloo on CPUs, NCCL on GPUs.

    Nested calls use the group of the outermost call.

    Args:
        device: device of the configuration; with ``cuda``, each process uses the GPU of its local rank.

    Raises:
        UsageError: the device is one particular GPU, but there are several processes.
        EnvironmentLacks: WORLD_SIZE is above 1 but other variables of ``torchrun`` are missing, or there are more
            processes than GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ProcessGroup(device=torch.device(device))
        return
    if distributed.is_initialized():
        yield _this_process(device)
        return
    missing = [name for name in _VARIABLES if not os.environ.get(name, "")]
    if missing:
        raise EnvironmentLacks(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start the training with "
            "torchrun, or unset WORLD_SIZE"
        )
    if device.startswith("cuda:"):
        raise UsageError(f'device "{device}" cannot serve several processes; use device: cuda, for one GPU per process')
    if device == "cuda":
        own = _own_device(device)
        if own.index >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise EnvironmentLacks(f"this machine has fewer GPUs ({gpus}) than processes; start one process per GPU")
        torch.cuda.set_device(own)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    yield _this_process(device)
    # Not after an error: NCCL would wait here for lost processes without an end.
    distributed.destroy_process_group()


def _this_process(device: str) -> ProcessGroup:
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), _own_device(device))


def _own_device(device: str) -> torch.device:
    return torch.device("cpu") if device == "cpu" else torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextmanager
def _lost_process_as_interrupted() -> Iterator[None]:
    """Convert the RuntimeError of torch for an unreachable process to Interrupted."""
    try:
        yield
    except RuntimeError as error:
        raise Interrupted(
            f"another process of this training is lost or does not respond ({error}); start it again with --resume",
            code="process_lost",
        ) from error
