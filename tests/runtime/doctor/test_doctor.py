"""hagmil doctor tries each provider, and reports the GPU and what is wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from hagmil.runtime.doctor import trial
from hagmil.runtime.doctor.installed import find_installed
from hagmil.runtime.doctor.report import diagnose, doctor_schema
from hagmil.runtime.doctor.trial import PROBE, PROBE_CASE, try_provider
from hagmil.selftest import read_selftest
from hagmil.spec import BACKBONE_FEATURES, PATCHES
from tests.conftest import REPOSITORY
from tests.fakes.cuda_driver import FakeDriver, install_gpu
from tests.fakes.gpu import Gpu
from tests.fakes.onnxruntime import fake_onnxruntime
from tests.fakes.tensorrt import fake_tensorrt, fake_tensorrt_rtx


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with a GPU, cupy, ONNX Runtime with CUDA, and no TensorRT."""
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(gpu))
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    return install_gpu(monkeypatch, gpu)


def test_the_cpu_gives_the_right_result() -> None:
    (outcome,) = try_provider("cpu")
    assert (outcome.state, outcome.runs_on, outcome.code) == ("ok", "CPUExecutionProvider", None)


def test_cuda_is_tried_with_arrays_of_the_host_and_of_the_gpu(driver: FakeDriver) -> None:
    (outcome,) = try_provider("cuda")
    assert (outcome.state, outcome.runs_on) == ("ok", "CUDAExecutionProvider")
    assert len(driver.gpu.allocations) == 2  # the patches and the features of the second run


def test_each_flavour_of_tensorrt_is_tried(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(each.state, each.code) for each in try_provider("tensorrt")] == [("missing", "package_missing")]
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(driver.gpu))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake_tensorrt_rtx(driver.gpu))
    outcomes = try_provider("tensorrt")
    assert [outcome.state for outcome in outcomes] == ["ok", "ok"]
    assert [str(outcome.runs_on).split()[0] for outcome in outcomes] == ["TensorRT", "TensorRT-RTX"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_machine_without_a_gpu_gets_the_message_of_inference(
    provider: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(driver.gpu))
    driver.gpu.capability = ""
    (outcome,) = try_provider(provider)
    assert (outcome.state, outcome.code) == ("failed", "no_gpu")
    assert "finds no NVIDIA GPU" in outcome.detail


@pytest.mark.parametrize("change", [0.1, np.nan])
def test_a_provider_with_wrong_numbers_fails(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = read_selftest(PROBE_CASE)
    wrong = {name: array + change for name, array in case.outputs.items()}
    session = SimpleNamespace(provider="Broken", on_device=False, run=lambda _inputs: wrong)
    monkeypatch.setattr(trial, "open_session", lambda *_, **__: session)
    (outcome,) = try_provider("cpu")
    assert (outcome.state, outcome.code) == ("failed", "provider_wrong")
    assert "Broken gives wrong numbers" in outcome.detail


def test_any_failure_of_a_library_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such symbol")

    monkeypatch.setattr(trial, "open_session", fail)
    (outcome,) = try_provider("cuda")
    assert (outcome.state, outcome.code, outcome.detail) == ("failed", "internal", "OSError: no such symbol")


def test_the_report_describes_the_driver_and_its_gpus(driver: FakeDriver) -> None:
    driver.gpu.memory_bytes = 48 << 30
    report = diagnose(("cpu", "cuda"))
    assert report.starts("cuda")
    (gpu,) = report.nvidia.gpus
    assert (gpu.name, gpu.memory_bytes, gpu.capability) == ("NVIDIA L40S", 48 << 30, "8.9")
    assert (report.nvidia.cuda, report.nvidia.problem) == ("13.0", None)


def test_the_report_says_why_no_gpu_can_be_used(driver: FakeDriver) -> None:
    driver.version = 12040
    report = diagnose(("cuda",))
    assert not report.starts()
    assert report.nvidia.cuda == "12.4"
    assert report.nvidia.problem == report.providers[0].detail
    assert "is too old" in report.providers[0].detail


def test_versions_of_cudas_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime-gpu": "1.31.1", "nvidia-cublas": "13.1.1.3", "pyvips": "3.2.0"}
    monkeypatch.setattr("hagmil.runtime.doctor.installed.installed_version", versions.get)
    findings = {finding.name: finding for finding in find_installed()}
    assert findings["onnxruntime-gpu"].detail.startswith("1.31.1")
    assert findings["nvidia-cublas"].detail.startswith("13.1.1.3")
    assert "nvidia-curand" not in findings
    assert findings["numba"].state == "missing"


def test_both_onnx_runtimes_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hagmil.runtime.doctor.installed.installed_version", lambda _name: "1.31.1")
    assert any(finding.state == "missing" and "conflict" in finding.detail for finding in find_installed())


def test_the_schema_is_published() -> None:
    published = json.loads((REPOSITORY / "docs" / "schemas" / "doctor.schema.json").read_text())
    assert published == doctor_schema()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/make_probe.py."""
    spec = importlib.util.spec_from_file_location("make_probe", REPOSITORY / "scripts" / "make_probe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_probe_is_what_the_script_makes(script: ModuleType) -> None:
    assert PROBE.read_bytes() == script.graph().SerializeToString()
    (case,) = read_selftest(PROBE_CASE)
    wanted = script.case()
    np.testing.assert_array_equal(case.inputs[PATCHES.name], wanted.inputs[PATCHES.name])
    np.testing.assert_allclose(case.outputs[BACKBONE_FEATURES.name], wanted.outputs[BACKBONE_FEATURES.name], rtol=1e-6)


def test_the_probe_needs_convolutions_and_matrix_products() -> None:
    operators = {node.op_type for node in onnx.load(PROBE).graph.node}
    assert {"Conv", "MatMul"} <= operators
    assert PROBE.stat().st_size < 10_000
