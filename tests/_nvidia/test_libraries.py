"""CUDA's libraries are loaded from their packages, and a missing one is named with its package."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hagmil._nvidia import libraries
from hagmil._nvidia.libraries import LIBRARIES, OTHER_PACKAGES, explain_missing, load_libraries
from hagmil.errors import EnvironmentLacks
from tests.conftest import REPOSITORY

RECORDED = json.loads((REPOSITORY / "tests" / "data" / "wheels.json").read_text())
CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"

# Recorded with onnxruntime-gpu 1.31.1 on a machine without a driver, before and after CUDA's libraries were loaded.
NOT_LOADED = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /venv/lib/python3.11/site-packages/onnxruntime/capi/"
    "libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file or "
    "directory"
)
NO_DRIVER = NOT_LOADED.replace("libcublasLt.so.13", "libcuda.so.1")
# Recorded with tensorrt_cu13_bindings 11.4.0.106 without its libraries, and by the linker of another system.
NO_TENSORRT = "libnvonnxparser.so.11: cannot open shared object file: No such file or directory"
NO_SYSTEM_LIBRARY = "libstdc++.so.6: cannot open shared object file: No such file or directory"


@pytest.fixture
def a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of NVIDIA's packages with one library, which the linker does not find."""
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    monkeypatch.setattr(libraries, "_nvidia_folders", lambda: [tmp_path / "nvidia"])
    monkeypatch.setitem(LIBRARIES, "gpu", {"libhagmil_test.so.13": "nvidia-test"})
    load_libraries.cache_clear()
    yield folder / "libhagmil_test.so.13"
    load_libraries.cache_clear()


def test_a_library_is_loaded_from_its_package(a_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("_ctypes")  # any shared object will do
    assert spec is not None
    assert spec.origin is not None
    shutil.copy(spec.origin, a_library)
    loaded: list[str] = []
    load = ctypes.CDLL

    def note(name: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
        found = load(name, mode)
        loaded.append(name)
        return found

    monkeypatch.setattr(ctypes, "CDLL", note)
    load_libraries("gpu")
    load_libraries("gpu")
    assert loaded == [str(a_library)]


@pytest.mark.usefixtures("a_library")
def test_a_missing_library_is_named_with_its_package_and_the_install_command() -> None:
    with pytest.raises(EnvironmentLacks) as caught:
        load_libraries("gpu")
    assert caught.value.code == "library_missing"
    assert caught.value.message == (
        'library libhagmil_test.so.13 of the package nvidia-test is missing; run: pip install "hagmil[gpu]"'
    )


def test_a_damaged_library_is_named_with_its_package(a_library: Path) -> None:
    a_library.write_bytes(b"no library")
    with pytest.raises(
        EnvironmentLacks, match=r"libhagmil_test.*nvidia-test cannot be loaded.*--force-reinstall"
    ) as caught:
        load_libraries("gpu")
    assert caught.value.code == "package_broken"


@pytest.mark.parametrize(
    ("text", "extra", "words"),
    [
        (NOT_LOADED, "gpu", "library libcublasLt.so.13 of the package nvidia-cublas is missing"),
        (NO_TENSORRT, "tensorrt", "library libnvonnxparser.so.11 of the package tensorrt_cu13_libs is missing"),
        (NO_SYSTEM_LIBRARY, "gpu", "library libstdc++.so.6 is missing"),
    ],
)
def test_recorded_messages_of_the_linker_are_explained(text: str, extra: str, words: str) -> None:
    error = explain_missing(text, extra)
    assert error is not None
    assert error.message == f'{words}; run: pip install "hagmil[{extra}]"'


@pytest.mark.parametrize("text", ["undefined symbol: Provider_GetHost", NO_DRIVER])
def test_messages_about_no_package_are_not_explained(text: str) -> None:
    assert explain_missing(text, "gpu") is None


def test_the_libraries_to_load_are_those_that_the_packages_need() -> None:
    needed = set(RECORDED["onnxruntime-gpu"]["needs"][CUDA_PROVIDER]) - {"libcuda.so.1"}
    opened_while_it_runs = {"libcudnn.so.9", "libnvrtc.so.13"}
    assert LIBRARIES["gpu"].keys() == needed | opened_while_it_runs
    assert LIBRARIES["tensorrt-rtx"].keys() <= set(RECORDED["cupy-cuda13x"]["needs"])
    modules = {**RECORDED["tensorrt_cu13_bindings"]["needs"], **RECORDED["tensorrt_rtx_cu13_bindings"]["needs"]}
    assert OTHER_PACKAGES.keys() == {name for names in modules.values() for name in names}


def test_each_library_is_in_its_package() -> None:
    for libraries_of_extra in (*LIBRARIES.values(), OTHER_PACKAGES):
        for name, package in libraries_of_extra.items():
            if package != "tensorrt_cu13_libs":  # not on PyPI
                assert name in RECORDED[package]["provides"]


def test_the_extras_of_tensorrt_bring_the_packages_of_their_libraries() -> None:
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extra in ("tensorrt", "tensorrt-rtx"):
        for package in LIBRARIES[extra].values():
            assert any(line.startswith(f"{package}>=") for line in project["optional-dependencies"][extra])
