"""What keeps ONNX Runtime's CUDA provider from starting is found before a session is opened."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from hagmil.errors import EnvironmentLacks
from hagmil.runtime.sessions import cuda, open_session
from hagmil.runtime.sessions.cuda import CAPABILITIES, cuda_failure, has_code_for, linker_problem, require_cuda
from tests.conftest import REPOSITORY
from tests.fakes.cuda_driver import FakeDriver, install_gpu
from tests.fakes.gpu import Gpu
from tests.fakes.onnxruntime import fake_onnxruntime
from tests.runtime.small_bundle import stage_graph

RECORDED = json.loads((REPOSITORY / "tests" / "data" / "wheels.json").read_text())["onnxruntime-gpu"]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with a GPU and the recorded onnxruntime-gpu."""
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(gpu))
    monkeypatch.setattr(cuda, "installed_version", lambda _name: RECORDED["version"])
    return install_gpu(monkeypatch, gpu)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save(stage_graph(), tmp_path / "stage.onnx")
    return tmp_path / "stage.onnx"


def test_the_capabilities_are_those_that_the_package_has_code_for() -> None:
    assert list(CAPABILITIES[RECORDED["version"]]) == RECORDED["capabilities"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("7.5", True), ("8.7", True), ("9.0", True), ("12.1", True), ("7.0", False), ("10.0", False), ("6.1", False)],
)
def test_code_runs_on_later_minor_versions_only(capability: str, runs: bool) -> None:
    assert has_code_for(capability, CAPABILITIES["1.31.1"]) == runs


def test_a_session_opens_on_a_gpu(driver: FakeDriver, graph: Path) -> None:
    assert open_session(graph, provider="cuda").provider == "CUDAExecutionProvider"
    assert require_cuda().name == driver.name


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"version": 12090}, "driver_too_old", "it supports CUDA 12.9, and CUDA 13 is needed"),
        ({"gpu": Gpu(capability="")}, "no_gpu", "finds no NVIDIA GPU"),
        (
            {"gpu": Gpu(capability="100"), "name": "NVIDIA B200"},
            "capability",
            '"NVIDIA B200" has compute capability 10.0',
        ),
    ],
)
def test_a_session_that_cannot_start_is_refused_with_the_reason(
    change: dict[str, Any], code: str, words: str, driver: FakeDriver, graph: Path
) -> None:
    for name, value in change.items():
        setattr(driver, name, value)
    with pytest.raises(EnvironmentLacks) as caught:
        open_session(graph, provider="cuda")
    assert caught.value.code == code
    assert words in caught.value.message


def test_a_provider_that_onnx_runtime_drops_is_an_error(
    driver: FakeDriver, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driver
    fake: Any = sys.modules["onnxruntime"]
    fake.__file__ = "/nowhere/onnxruntime/__init__.py"
    monkeypatch.setattr(fake.InferenceSession, "get_providers", lambda _self: ["CPUExecutionProvider"])
    with pytest.raises(
        EnvironmentLacks, match=r'"cuda" did not start: library libonnxruntime_providers_shared'
    ) as caught:
        open_session(graph, provider="cuda")
    assert caught.value.code == "provider_failed"


def test_a_provider_that_the_linker_can_load_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_PROVIDER_LIBRARIES", ())
    assert linker_problem(SimpleNamespace(__file__="a/b.py")) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0", "driver_too_old"),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1", "no_gpu"),
        ("CUDA failure 209: no kernel image is available for execution on the device", "capability"),
        ("CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED", "provider_failed"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", "provider_failed"),
    ],
)
def test_failures_of_cuda_are_about_the_machine(text: str, code: str) -> None:
    error = cuda_failure(text)
    assert error is not None
    assert error.code == code


def test_other_failures_are_about_the_graph() -> None:
    assert cuda_failure("Got invalid dimensions for input: features") is None


def test_a_missing_onnx_runtime_names_the_extra_of_the_provider(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for provider, extra in (("cpu", "cpu"), ("cuda", "gpu")):
        with pytest.raises(EnvironmentLacks, match=rf"hagmil\[{extra}\]"):
            open_session(graph, provider=provider)


def test_another_version_of_onnx_runtime_is_not_refused_for_its_gpus(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.gpu.capability = "100"
    monkeypatch.setattr(cuda, "installed_version", lambda _name: "1.40.0")
    assert require_cuda().capability == "10.0"
