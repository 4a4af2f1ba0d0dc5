"""Several processes that train one model, started by ``torchrun``: who is who, and what they tell one another.

1. Every process holds all models and takes its share of each step's slides
(:func:`hagmil.trainer.training.sampling.steps_of_rank`).
2. Before an optimiser's step the gradients are averaged, so all take the same step and keep the same weights.
3. An evaluation shares its slides out without repeating any; the verdicts are gathered by the slides' places.
4. Rank 0 alone writes files and tells of progress.

Gradients are averaged here and not by DistributedDataParallel: a slide takes an optimiser's step at every stage, with
a forward pass that is not ``forward``; which classifiers of the instance loss take part depends on the slide's label;
and blocks may be computed twice. One sum over a flat copy does it in sight, and leaves a parameter that no process
used without a gradient, as Adam would find it in one process. What is lost is communication during the backward pass,
which is short beside a bag of ten thousand patches.

Where a process is lost, the others' next exchange fails at once, or after ``TIMEOUT`` at the latest; ``torchrun`` then
ends those that are left.
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
"""How long a process waits for the others: longer than an evaluation's shares differ, shorter than for ever."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process among those that train together.

    Args:
        rank: which one, from 0.
        world_size: number of processes.
        device: where this one computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it cannot be changed

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module) -> None:
        """Replace each parameter's gradient by its mean over processes (step 2); one without a gradient counts as 0,
        unless no process has one."""
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
        """The means over processes of some numbers; the same on all of them."""
        if self.world_size == 1:
            return tuple(values)
        total = self._sum(torch.tensor(values, dtype=torch.float64, device=self.device))
        return tuple((total / self.world_size).tolist())

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process; none goes on before all have come here."""
        return flag if self.world_size == 1 else bool(self._sum(torch.tensor(int(flag), device=self.device)).item())

    def all_gather(self, own: _T) -> list[_T]:
        """What each process has, by rank; the same on all of them."""
        if self.world_size == 1:
            return [own]
        found: list[_T | None] = [None] * self.world_size
        with _told_of_loss():
            distributed.all_gather_object(found, own)
        return [one for one in found if one is not None]

    def _sum(self, values: Tensor) -> Tensor:
        with _told_of_loss():
            distributed.all_reduce(values)
        return values


SINGLE_PROCESS = ProcessGroup()
"""One process, on the CPU or wherever it likes."""


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that were started together, if any were: gloo on the CPU, NCCL on GPUs.

    An inner ``joined`` finds what the outer one made.

    Args:
        device: of the configuration; of several processes with ``cuda`` each takes the GPU of its local rank.

    Raises:
        UsageError: one certain GPU for several processes.
        EnvironmentLacks: the environment names several processes, and not how they find one another; or there are more
            of them than GPUs.
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
        raise UsageError(f'device "{device}" for several processes; write device: cuda, and each takes its own')
    if device == "cuda":
        own = _own_device(device)
        if own.index >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise EnvironmentLacks(f"this machine has {there} GPUs, and more processes were started; start one a GPU")
        torch.cuda.set_device(own)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    yield _this_process(device)
    # Not where an error passes: NCCL would wait here for processes that are lost, and nobody would end this one.
    distributed.destroy_process_group()


def _this_process(device: str) -> ProcessGroup:
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), _own_device(device))


def _own_device(device: str) -> torch.device:
    return torch.device("cpu") if device == "cpu" else torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextmanager
def _told_of_loss() -> Iterator[None]:
    """Say in words what torch says by a RuntimeError when a process can no longer be reached."""
    try:
        yield
    except RuntimeError as error:
        raise Interrupted(
            f"another process of this training is lost or does not answer ({error}); start it again with --resume",
            code="process_lost",
        ) from error
