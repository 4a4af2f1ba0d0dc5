"""A fake of the driver's library: the calls that hagmil makes, with arguments as ctypes passes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from hagmil._nvidia import driver
from hagmil.runtime.doctor import trial
from hagmil.runtime.sessions import cuda, engines
from tests.fakes.cupy import fake_cupy
from tests.fakes.gpu import Gpu

NO_DEVICE = 100
_CAPABILITY_MAJOR = 75


@dataclass
class FakeDriver:
    """The driver's library.

    Args:
        gpu: the only GPU; it is absent if its capability is empty.
        version: the newest version of CUDA that the driver supports, as ``cuDriverGetVersion`` gives it.
        result: result of ``cuInit``.
        name: name of the GPU.
    """

    gpu: Gpu
    version: int = 13000
    result: int = 0
    name: str = "NVIDIA L40S"

    def cuDriverGetVersion(self, version: Any) -> int:
        """See CUDA."""
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        """See CUDA."""
        assert flags == 0
        return self.result or (0 if self.gpu.capability else NO_DEVICE)

    def cuDeviceGetCount(self, count: Any) -> int:
        """See CUDA."""
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        """See CUDA."""
        assert ordinal == 0
        device._obj.value = 0
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        """See CUDA."""
        assert device.value == 0
        name.value = self.name.encode()[: length - 1]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        """See CUDA."""
        assert device.value == 0
        size._obj.value = self.gpu.memory_bytes
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        """See CUDA."""
        assert device.value == 0
        major, minor = int(self.gpu.capability[:-1]), int(self.gpu.capability[-1])
        value._obj.value = major if attribute == _CAPABILITY_MAJOR else minor
        return 0

    def cuGetErrorName(self, error: int, name: Any) -> int:
        """See CUDA."""
        name._obj.value = {802: b"CUDA_ERROR_SYSTEM_NOT_READY"}.get(error)
        return 0


def install_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> FakeDriver:
    """Give the machine a driver with this GPU, CUDA's libraries, and cupy."""
    fake = FakeDriver(gpu)
    monkeypatch.setattr(driver, "open_library", lambda: fake)
    for module in (cuda, engines, trial):
        monkeypatch.setattr(module, "load_libraries", lambda _extra: None)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(gpu))
    return fake
