"""Each way in which the driver can be unusable has a message and a code of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hagmil._nvidia import driver
from hagmil._nvidia.driver import Gpu, find_driver, find_gpus
from hagmil.errors import EnvironmentLacks
from tests.fakes import gpu as fakes
from tests.fakes.cuda_driver import FakeDriver

OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDriver:
    """The driver 580.65.06 with one GPU."""
    fake = FakeDriver(fakes.Gpu(memory_bytes=48 << 30))
    (tmp_path / "version").write_text(OPEN_DRIVER)
    monkeypatch.setattr(driver, "open_library", lambda: fake)
    monkeypatch.setattr(driver, "_VERSION_FILE", tmp_path / "version")
    return fake


@pytest.mark.usefixtures("fake")
def test_a_gpu_is_described() -> None:
    assert find_gpus() == (Gpu("NVIDIA L40S", 48 << 30, "8.9"),)
    assert find_driver() == driver.Driver("580.65.06", "13.0")


def test_the_release_is_unknown_where_the_system_does_not_give_it(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_VERSION_FILE", tmp_path / "none")
    fake.version = 13010
    assert find_driver() == driver.Driver(None, "13.1")


def lacks() -> EnvironmentLacks:
    with pytest.raises(EnvironmentLacks) as caught:
        find_gpus()
    return caught.value


def test_a_missing_driver_is_named_and_not_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "DRIVER_LIBRARY", "libhagmil_no_such_driver.so.1")
    lack = lacks()
    assert lack.code == "driver_missing"
    assert lack.message.startswith("this machine has no NVIDIA driver; install driver 580 or later")
    assert ".so" not in lack.message


def test_a_driver_that_is_too_old_is_named_with_what_it_supports(fake: FakeDriver) -> None:
    fake.version = 12080
    lack = lacks()
    assert lack.code == "driver_too_old"
    assert "NVIDIA driver 580.65.06 is too old: it supports CUDA 12.8, and CUDA 13 is needed" in lack.message


def test_a_driver_without_a_gpu_is_reported_with_the_variable_that_hides_it(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.gpu.capability = ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lack = lacks()
    assert lack.code == "no_gpu"
    assert "NVIDIA driver 580.65.06 finds no NVIDIA GPU; use" in lack.message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert 'finds no NVIDIA GPU (CUDA_VISIBLE_DEVICES is "")' in lacks().message


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (802, "driver_failed", "does not start (CUDA_ERROR_SYSTEM_NOT_READY); run nvidia-smi"),
        (999999, "driver_failed", "does not start (CUDA error 999999)"),
        (34, "driver_missing", "no NVIDIA driver"),  # the library is the stub of a CUDA toolkit
    ],
)
def test_a_driver_that_does_not_start_is_reported(fake: FakeDriver, result: int, code: str, words: str) -> None:
    fake.result = result
    assert lacks().code == code
    assert words in lacks().message
