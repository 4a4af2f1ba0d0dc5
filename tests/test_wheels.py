"""The GPU packages fit together: what their shared objects need, constraints.txt, and the table in docs/gpu.md."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import Any

import pytest

from hagmil._tensorrt.flavour import load_flavour
from tests.conftest import REPOSITORY

_RECORD = REPOSITORY / "tests" / "data" / "wheels.json"
_ROW = re.compile(r"^\| [^|]+ \| ([\w-]+) \| ([\d.]+) \| ([\w, -]+) \| ([^|]+) \|$", re.MULTILINE)
_DRIVER = "libcuda.so.1"
_CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"
_TENSORRT_LIBRARY = re.compile(r"libnv(infer|infer_plugin|onnxparser)\.so\.(\d+)")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/record_wheels.py."""
    spec = importlib.util.spec_from_file_location("record_wheels", REPOSITORY / "scripts" / "record_wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """What the packages contain and need."""
    record: dict[str, Any] = json.loads(_RECORD.read_text())
    return record


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Versions by package, from constraints.txt."""
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def table() -> dict[str, tuple[str, set[str], str]]:
    """Version, extras and GPUs by package, from docs/gpu.md."""
    rows = _ROW.findall((REPOSITORY / "docs" / "gpu.md").read_text())
    return {package: (version, set(extras.split(", ")), gpus) for package, version, extras, gpus in rows}


def _pinned_as(package: str) -> str:
    """The package that constraints.txt pins: tensorrt requires its bindings in the same version."""
    return "tensorrt" if package == "tensorrt_cu13_bindings" else package


def test_recorded_packages_have_the_pinned_versions(recorded: dict[str, Any], pins: dict[str, str]) -> None:
    versions = {_pinned_as(name): entry["version"] for name, entry in recorded.items()}
    assert versions == {name: pins[name] for name in versions}, "run scripts/record_wheels.py"


def test_the_table_of_versions_agrees_with_the_pins(
    recorded: dict[str, Any], pins: dict[str, str], table: dict[str, tuple[str, set[str], str]]
) -> None:
    assert {name: version for name, (version, *_) in table.items()} == {name: pins[name] for name in table}
    assert table.keys() == {_pinned_as(name) for name in recorded} - {"tensorrt_rtx_cu13_bindings"}


def test_the_table_names_the_gpus_that_the_packages_have_code_for(
    recorded: dict[str, Any], table: dict[str, tuple[str, set[str], str]]
) -> None:
    assert table["onnxruntime-gpu"][2].split(", ") == recorded["onnxruntime-gpu"]["capabilities"]
    assert table["tensorrt_rtx_cu13_libs"][2].split(", ") == list(load_flavour("tensorrt-rtx").targets)


def test_the_extra_gpu_has_every_library_that_the_cuda_provider_needs(
    recorded: dict[str, Any], table: dict[str, tuple[str, set[str], str]]
) -> None:
    provided = {name for package in _packages_of("gpu", table) for name in recorded[package].get("provides", ())}
    needed = {*recorded["onnxruntime-gpu"]["needs"][_CUDA_PROVIDER], *recorded["cupy-cuda13x"]["needs"]}
    assert needed - provided == {_DRIVER}


def test_the_pinned_tensorrt_has_the_libraries_that_its_bindings_need(
    recorded: dict[str, Any], pins: dict[str, str]
) -> None:
    needs = recorded["tensorrt_cu13_bindings"]["needs"]["tensorrt.so"]
    majors = {match[2] for match in map(_TENSORRT_LIBRARY.fullmatch, needs) if match}
    assert majors == {pins["tensorrt"].partition(".")[0]}
    rtx = recorded["tensorrt_rtx_cu13_bindings"]["needs"]["tensorrt_rtx.so"]
    assert set(rtx) <= set(recorded["tensorrt_rtx_cu13_libs"]["provides"])


def test_the_table_lists_the_extras_that_bring_each_package(table: dict[str, tuple[str, set[str], str]]) -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("gpu", "tensorrt", "tensorrt-rtx"):
        named = {re.split(r"[\[<>=]", requirement)[0] for requirement in declared[extra]} & table.keys()
        assert named <= set(_packages_of(extra, table)), extra
        if extra != "gpu":  # ONNX Runtime's extras bring CUDA's packages
            assert named == set(_packages_of(extra, table)), extra


def test_the_record_is_what_the_installed_packages_need(recorded: dict[str, Any], script: ModuleType) -> None:
    compared = 0
    for name, entry in recorded.items():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if package.version == entry["version"]:
            assert json.loads(json.dumps(script.record(package))) == entry, name
            compared += 1
    assert compared >= 2  # TensorRT-RTX is installed for the tests


def _packages_of(extra: str, table: dict[str, tuple[str, set[str], str]]) -> list[str]:
    return [name for name, (_, extras, _) in table.items() if extra in extras]
