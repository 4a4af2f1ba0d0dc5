"""Check that ONNX Runtime's CUDA provider can start, and explain its failures.

If a library or the driver is missing, ONNX Runtime writes to its log and uses the CPU. The checks are therefore made
before a session is opened, in this order: CUDA's libraries, the driver, a GPU, and code for this GPU.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType

from hagmil._nvidia.driver import Gpu, find_gpus
from hagmil._nvidia.libraries import explain_missing, load_libraries
from hagmil._versions import installed_version
from hagmil.errors import EnvironmentLacks, one_line

CAPABILITIES = {"1.31.1": ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0")}
"""The compute capabilities that onnxruntime-gpu has machine code for, by its version."""

_PROVIDER_LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
_CUDA_SIGNS = ("CUDA failure", "CUDNN failure", "CUBLAS failure", "CUDA error", "cudaError")
_CODES = (
    ("driver version is insufficient", "driver_too_old", "install a newer NVIDIA driver"),
    ("no CUDA-capable device", "no_gpu", "use a machine with an NVIDIA GPU"),
    ("no kernel image", "capability", "this ONNX Runtime has no code for this GPU; use --provider tensorrt"),
)


def require_cuda() -> Gpu:
    """Load CUDA's libraries, and check the driver and the GPU.

    Returns:
        The GPU that the provider uses, the first one.

    Raises:
        EnvironmentLacks: what is missing, and what to do; see docs/errors.md for the codes.
    """
    load_libraries("gpu")
    gpu = find_gpus()[0]
    version = installed_version("onnxruntime-gpu")
    capabilities = CAPABILITIES.get(version or "")
    if capabilities and not has_code_for(gpu.capability, capabilities):
        raise EnvironmentLacks(
            f'GPU "{gpu.name}" has compute capability {gpu.capability}, but ONNX Runtime {version} has code for '
            f"{', '.join(capabilities)} only; use --provider tensorrt, or another GPU",
            code="capability",
        )
    return gpu


def has_code_for(capability: str, capabilities: tuple[str, ...]) -> bool:
    """Whether machine code for these compute capabilities runs on a GPU.

    Code runs on GPUs of the same major version and the same or a later minor version.
    """
    major, minor = _numbers(capability)
    return any(major == its_major and minor >= its_minor for its_major, its_minor in map(_numbers, capabilities))


def cuda_failure(text: str) -> EnvironmentLacks | None:
    """The error for a message of ONNX Runtime about CUDA; None if the message is not about CUDA."""
    for phrase, code, remedy in _CODES:
        if phrase in text:
            return EnvironmentLacks(f'provider "cuda" failed: {one_line(text)}; {remedy}', code=code)
    if any(sign in text for sign in _CUDA_SIGNS):
        return EnvironmentLacks(f'provider "cuda" failed: {one_line(text)}; run hagmil doctor', code="provider_failed")
    return None


def linker_problem(onnxruntime: ModuleType) -> str | None:
    """Why the linker cannot load the provider; None if it can."""
    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    try:
        for name in _PROVIDER_LIBRARIES:
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        known = explain_missing(str(error), "gpu")
        return known.message if known else one_line(str(error))
    return None


def _numbers(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
