"""Load CUDA's libraries from the packages of an extra, so that the linker finds them.

NVIDIA's packages put their libraries under ``site-packages/nvidia``, where the linker does not look. A library that is
loaded satisfies every later request for its name. ``onnxruntime.preload_dlls`` does this for ONNX Runtime, but prints
a line instead of raising an error if a library is missing.

The libraries are those that the shared objects of the extra's packages need, or open while they run: cuDNN, and nvrtc,
with which cuDNN and cupy compile kernels. Other parts of cuDNN lie beside it and are found by it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
from functools import cache
from pathlib import Path

from hagmil._nvidia.driver import DRIVER_LIBRARY
from hagmil.errors import EnvironmentLacks

_CUDART = {"libcudart.so.13": "nvidia-cuda-runtime"}
_NVRTC = {"libnvrtc.so.13": "nvidia-cuda-nvrtc"}
LIBRARIES: dict[str, dict[str, str]] = {
    "gpu": {
        **_CUDART,
        **_NVRTC,
        "libcublasLt.so.13": "nvidia-cublas",
        "libcublas.so.13": "nvidia-cublas",
        "libcurand.so.10": "nvidia-curand",
        "libcudnn.so.9": "nvidia-cudnn-cu13",
    },
    "tensorrt": _NVRTC,
    "tensorrt-rtx": _NVRTC,
}
"""The package of each library to load, by extra, in the order in which they need one another."""

OTHER_PACKAGES = {
    "libnvinfer.so.11": "tensorrt_cu13_libs",
    "libnvinfer_plugin.so.11": "tensorrt_cu13_libs",
    "libnvonnxparser.so.11": "tensorrt_cu13_libs",
    "libtensorrt_rtx.so.1": "tensorrt_rtx_cu13_libs",
    "libtensorrt_onnxparser_rtx.so.1": "tensorrt_rtx_cu13_libs",
}
"""The package of each library that a Python module of an extra loads."""

_MISSING = re.compile(r"(lib[\w.+-]+\.so[\d.]*): cannot open shared object file")


@cache
def load_libraries(extra: str) -> None:
    """Load the libraries of an extra, once.

    Args:
        extra: ``gpu``, ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        EnvironmentLacks: a library is missing (code ``library_missing``), or cannot be loaded (``package_broken``); the
            message names the library, its package and the install command.
    """
    if platform.system() != "Linux":
        return
    for name, package in LIBRARIES[extra].items():
        if not _is_loaded(name):
            _load(name, package, extra)


def explain_missing(text: str, extra: str) -> EnvironmentLacks | None:
    """The error for a message of the linker; None if it does not say that a library of a package is missing."""
    match = _MISSING.search(text)
    if match is None or match[1] == DRIVER_LIBRARY:
        return None
    packages = {**LIBRARIES[extra], **OTHER_PACKAGES}
    return _missing(match[1], packages.get(match[1]), extra)


def _is_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _load(name: str, package: str, extra: str) -> None:
    """Load a library from its package, or from where the linker looks."""
    found = next((path for folder in _nvidia_folders() for path in folder.glob(f"*/lib/{name}")), None)
    try:
        ctypes.CDLL(str(found or name))
    except OSError as error:
        if found is None:
            raise _missing(name, package, extra) from error
        raise EnvironmentLacks(
            f"library {name} of the package {package} cannot be loaded ({error}); "
            f'run: pip install --force-reinstall "hagmil[{extra}]"',
            code="package_broken",
        ) from error


def _nvidia_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _missing(name: str, package: str | None, extra: str) -> EnvironmentLacks:
    what = f"library {name} of the package {package}" if package else f"library {name}"
    return EnvironmentLacks(f'{what} is missing; run: pip install "hagmil[{extra}]"', code="library_missing")
