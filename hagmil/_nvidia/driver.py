"""The NVIDIA driver and its GPUs, as the driver's own library describes them; no package is needed.

1. Load the driver's library, which only a driver installs.
2. Read the newest version of CUDA that the driver supports.
3. Start the driver, and describe the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves.

Each step that fails has an error with a code of its own.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagmil.errors import EnvironmentLacks

CUDA_MAJOR = 13
"""The version of CUDA that all packages of the extras are built for."""

FIRST_DRIVER = 580
"""The first release of the driver that supports it."""

DRIVER_LIBRARY = "libcuda.so.1"
"""The driver's library, which no package contains."""

_VERSION_FILE = Path("/proc/driver/nvidia/version")
_RELEASE = re.compile(r"\b\d{3,}\.\d+(\.\d+)?\b")
_NO_DEVICE, _STUB_LIBRARY = 100, 34  # results of cuInit
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Driver:
    """An installed driver.

    Args:
        release: its release, such as ``580.65.06``; None if the system does not give it.
        cuda: the newest version of CUDA that it supports, such as ``13.0``.
    """

    release: str | None
    cuda: str

    @property
    def title(self) -> str:
        """Name and release for messages."""
        return f"NVIDIA driver {self.release}" if self.release else "NVIDIA driver"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Args:
        name: its name, such as ``NVIDIA H100 80GB HBM3``.
        memory_bytes: size of its memory.
        capability: compute capability, such as ``9.0``.
    """

    name: str
    memory_bytes: int
    capability: str


def find_driver() -> Driver:
    """Steps 1 and 2.

    Raises:
        EnvironmentLacks: there is no driver (code ``driver_missing``).
    """
    library, version = open_library(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return Driver(_release(), f"{version.value // 1000}.{version.value % 1000 // 10}")


def find_gpus() -> tuple[Gpu, ...]:
    """Steps 1 to 3.

    Returns:
        At least one GPU, in CUDA's order.

    Raises:
        EnvironmentLacks: there is no driver (code ``driver_missing``), it is too old (``driver_too_old``), it cannot
            start (``driver_failed``), or it finds no GPU (``no_gpu``).
    """
    driver = find_driver()
    if int(driver.cuda.partition(".")[0]) < CUDA_MAJOR:
        raise EnvironmentLacks(
            f"the {driver.title} is too old: it supports CUDA {driver.cuda}, and CUDA {CUDA_MAJOR} is needed; install "
            f"driver {FIRST_DRIVER} or later",
            code="driver_too_old",
        )
    library, count = open_library(), ctypes.c_int()
    result = library.cuInit(0)
    if result == _STUB_LIBRARY:
        raise _no_driver()
    if result not in (0, _NO_DEVICE):
        raise EnvironmentLacks(
            f"the {driver.title} does not start ({_error_name(library, result)}); run nvidia-smi, and restart the "
            "machine if the driver was updated",
            code="driver_failed",
        )
    if result == 0:
        library.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if visible is None else f' (CUDA_VISIBLE_DEVICES is "{visible}")'
        raise EnvironmentLacks(
            f"the {driver.title} finds no NVIDIA GPU{hint}; use a machine with a GPU, or start the container with its "
            "GPUs (docker run --gpus all)",
            code="no_gpu",
        )
    return tuple(_describe(library, index) for index in range(count.value))


def open_library() -> Any:
    """Step 1: the driver's library, through ctypes."""
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        raise _no_driver() from error


def _no_driver() -> EnvironmentLacks:
    return EnvironmentLacks(
        f"this machine has no NVIDIA driver; install driver {FIRST_DRIVER} or later, start the container with its GPUs "
        "(docker run --gpus all), or use a machine with a GPU",
        code="driver_missing",
    )


def _release() -> str | None:
    try:
        match = _RELEASE.search(_VERSION_FILE.read_text())
    except OSError:
        return None
    return match[0] if match else None


def _error_name(library: Any, result: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(result, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {result}"


def _describe(library: Any, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, _NAME_BYTES, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    digits = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        digits.append(str(value.value))
    return Gpu(name.value.decode(), memory.value, ".".join(digits))
