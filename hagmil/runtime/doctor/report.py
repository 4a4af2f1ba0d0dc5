"""The report of ``hagmil doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from hagmil._models import FrozenModel
from hagmil._nvidia.driver import find_driver, find_gpus
from hagmil.errors import EnvironmentLacks
from hagmil.runtime.doctor.installed import Finding, find_installed
from hagmil.runtime.doctor.trial import Trial, try_provider
from hagmil.runtime.sessions import PROVIDERS, Provider


class GpuEntry(FrozenModel):
    """One GPU."""

    name: str
    memory_bytes: int
    capability: str = Field(description="compute capability, for example 8.9")


class NvidiaEntry(FrozenModel):
    """The NVIDIA driver and its GPUs."""

    driver: str | None = Field(description="release of the driver; null if unknown or if there is none")
    cuda: str | None = Field(description="newest version of CUDA that the driver supports; null if there is no driver")
    gpus: tuple[GpuEntry, ...]
    problem: str | None = Field(description="why no GPU can be used, and what to do; null if one can")


class DoctorReport(FrozenModel):
    """What this machine has and lacks."""

    format: Literal["hagmil-doctor"] = "hagmil-doctor"
    format_version: Literal[1] = 1
    installed: tuple[Finding, ...]
    nvidia: NvidiaEntry
    providers: tuple[Trial, ...]

    def starts(self, provider: Provider | None = None) -> bool:
        """Whether a provider, or any, gave the right result."""
        return any(trial.state == "ok" for trial in self.providers if provider in (None, trial.provider))


def diagnose(providers: Sequence[Provider] = PROVIDERS) -> DoctorReport:
    """Examine this machine and try providers.

    Args:
        providers: the providers to try.
    """
    return DoctorReport(
        installed=find_installed(),
        nvidia=_nvidia(),
        providers=tuple(trial for provider in providers for trial in try_provider(provider)),
    )


def doctor_schema() -> dict[str, Any]:
    """The JSON schema of the report."""
    return DoctorReport.model_json_schema()


def _nvidia() -> NvidiaEntry:
    try:
        driver = find_driver()
    except EnvironmentLacks as lack:
        return NvidiaEntry(driver=None, cuda=None, gpus=(), problem=lack.message)
    try:
        found = find_gpus()
    except EnvironmentLacks as lack:
        return NvidiaEntry(driver=driver.release, cuda=driver.cuda, gpus=(), problem=lack.message)
    gpus = tuple(GpuEntry(name=gpu.name, memory_bytes=gpu.memory_bytes, capability=gpu.capability) for gpu in found)
    return NvidiaEntry(driver=driver.release, cuda=driver.cuda, gpus=gpus, problem=None)
