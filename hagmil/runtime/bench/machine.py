"""The machine of a measurement, and the memory of this process."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from hagmil._machine import processor_name
from hagmil.runtime.bench.report import Machine
from hagmil.runtime.tiles.kernel import kernel_name

_GPUS = Path("/proc/driver/nvidia/gpus")


def this_machine() -> Machine:
    """Describe this machine as far as the standard library and ``/proc`` allow."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=_memory_gb(),
        gpus=tuple(_value(card, "Model") or "NVIDIA GPU" for card in sorted(_GPUS.glob("*/information"))),
        tile_kernel=kernel_name(),
    )


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process in units of 10^6 bytes.

    Linux gives it as ``VmHWM``. Elsewhere it is ``ru_maxrss``, which for a child process may include the memory that
    its parent had when it started the child.
    """
    kib = _kib("VmHWM")
    if kib is None:
        import resource  # missing on some systems

        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024 / 1e6


def rss_mb() -> float:
    """Return the resident memory of this process in units of 10^6 bytes; its peak where the system gives no other."""
    kib = _kib("VmRSS")
    return peak_rss_mb() if kib is None else kib * 1024 / 1e6


def _kib(name: str) -> int | None:
    value = _value(Path("/proc/self/status"), name)
    return None if value is None else int(value.split()[0])


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return None


def _value(path: Path, name: str) -> str | None:
    """Return the value after ``name:`` in a file of ``/proc``; None without such a line or file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), None)
