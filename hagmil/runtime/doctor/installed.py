"""Find what is installed on this machine and what is missing, without importing the packages."""

from __future__ import annotations

import os
import platform
from typing import Literal

from pydantic import Field

from hagmil._models import FrozenModel
from hagmil._nvidia.libraries import LIBRARIES, OTHER_PACKAGES
from hagmil._versions import installed_version

FindingState = Literal["ok", "missing", "optional"]
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


class Finding(FrozenModel):
    """A package or a property of the machine."""

    name: str
    state: FindingState = Field(description="missing: hagmil infer needs it; optional: only some commands need it")
    detail: str = Field(description="version or kind; for a missing package its purpose and how to install it")


_PACKAGES: tuple[tuple[str, str, str, bool], ...] = (
    ("pyvips", "reads TIFF-family slides", 'pip install "pyvips[binary]"', True),
    (
        "openslide-python",
        "reads NDPI, MRXS, DICOM and others",
        "pip install openslide-python openslide-bin",
        True,
    ),
    ("numba", "computes tissue masks on the CPU", "pip install numba", True),
    ("h5py", "feature and attention files", "pip install h5py", True),
    ("cupy-cuda13x", "arrays on an NVIDIA GPU", 'pip install "hagmil[gpu]"', False),
    ("tensorrt", "TensorRT engines", 'pip install "hagmil[tensorrt]"', False),
    (
        "tensorrt_rtx_cu13_bindings",
        "TensorRT-RTX engines, which can also be built without a GPU",
        'pip install "hagmil[tensorrt-rtx]"',
        False,
    ),
    ("torch", "training and export", 'pip install "hagmil[train,export]"', False),
    ("onnx", "export", 'pip install "hagmil[export]"', False),
    ("timm", "more backbones", 'pip install "hagmil[timm]"', False),
)


def find_installed() -> tuple[Finding, ...]:
    """Find hagmil, Python, cores, ONNX Runtime, CUDA's libraries, other packages, and the tile kernel."""
    from hagmil._versions import __version__

    cores = len(os.sched_getaffinity(0))
    head = (
        _finding("hagmil", "ok", __version__),
        _finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _finding("cores", "ok", str(cores)),
    )
    packages = (_package(*entry) for entry in _PACKAGES)
    return (*head, *_onnxruntime(), *_nvidia_packages(), *packages, _tile_kernel())


def _finding(name: str, state: FindingState, detail: str) -> Finding:
    return Finding(name=name, state=state, detail=detail)


def _package(name: str, purpose: str, remedy: str, needed: bool) -> Finding:
    version = installed_version(name)
    if version is not None:
        return _finding(name, "ok", f"{version} ({purpose})")
    return _finding(name, "missing" if needed else "optional", f"not installed; {purpose}: {remedy}")


def _tile_kernel() -> Finding:
    try:
        from hagmil.runtime.tiles.kernel import REMEDY, kernel_name, why_not_compiled
    except ImportError as error:  # of simplejpeg or NumPy, which inference needs
        return _finding("tile kernel", "missing", f"{error}; decodes JPEG tiles: pip install simplejpeg")
    if why_not_compiled is None:
        return _finding("tile kernel", "ok", f"{kernel_name()} (decodes JPEG tiles)")
    return _finding("tile kernel", "optional", f"{why_not_compiled}; tiles are decoded more slowly: {REMEDY}")


def _onnxruntime() -> tuple[Finding, ...]:
    versions = {name: installed_version(name) for name in _ONNX_RUNTIMES}
    findings = [_finding(name, "ok", f"{version} (runs the models)") for name, version in versions.items() if version]
    if len(findings) > 1:
        conflict = "onnxruntime and onnxruntime-gpu are both installed and conflict; uninstall one of them"
        findings.append(_finding("onnxruntime", "missing", conflict))
    return tuple(findings)


def _nvidia_packages() -> tuple[Finding, ...]:
    """The packages of CUDA's and TensorRT's libraries that are installed."""
    packages = [*LIBRARIES["gpu"].values(), *OTHER_PACKAGES.values()]
    versions = {name: installed_version(name) for name in packages}
    return tuple(
        _finding(name, "ok", f"{version} (NVIDIA's libraries)") for name, version in versions.items() if version
    )
