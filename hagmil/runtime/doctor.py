"""Report what is installed on this machine and what is missing; imports only ONNX Runtime of the large packages."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Literal

from hagmil._versions import installed_version
from hagmil.errors import EnvironmentLacks

FindingState = Literal["ok", "missing", "optional"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Args:
        name: a package, provider or property of the machine.
        state: ``ok``; ``missing`` if ``hagmil infer`` needs it; ``optional`` if only some commands need it.
        detail: the version or kind; for a missing package its purpose and how to install it.
    """

    name: str
    state: FindingState
    detail: str


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


def examine() -> tuple[Finding, ...]:
    """Examine this machine.

    Returns:
        Findings about hagmil, Python, cores, ONNX Runtime and its providers, packages, and the tile kernel.
    """
    from hagmil._versions import __version__

    cores = len(os.sched_getaffinity(0))
    head = (
        Finding("hagmil", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("cores", "ok", str(cores)),
    )
    return (*head, *_onnxruntime(), *(_package(*entry) for entry in _PACKAGES), _tile_kernel())


def _package(name: str, purpose: str, remedy: str, needed: bool) -> Finding:
    version = installed_version(name)
    if version is not None:
        return Finding(name, "ok", f"{version} ({purpose})")
    return Finding(name, "missing" if needed else "optional", f"not installed; {purpose}: {remedy}")


def _tile_kernel() -> Finding:
    try:
        from hagmil.runtime.tiles.kernel import REMEDY, kernel_name, why_not_compiled
    except ImportError as error:  # of simplejpeg or NumPy, which inference needs
        return Finding("tile kernel", "missing", f"{error}; decodes JPEG tiles: pip install simplejpeg")
    if why_not_compiled is None:
        return Finding("tile kernel", "ok", f"{kernel_name()} (decodes JPEG tiles)")
    return Finding("tile kernel", "optional", f"{why_not_compiled}; tiles are decoded more slowly: {REMEDY}")


def _onnxruntime() -> tuple[Finding, ...]:
    from hagmil.runtime.sessions.onnx import available_providers

    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed_version(name)]
    try:
        providers = available_providers()
    except EnvironmentLacks:
        remedy = 'pip install "hagmil[cpu]", or "hagmil[gpu]" on a machine with an NVIDIA GPU'
        return (Finding("onnxruntime", "missing", f"not installed; runs the models: {remedy}"),)
    findings = [Finding(name, "ok", f"{installed_version(name)} (runs the models)") for name in installed]
    if len(installed) > 1:
        findings.append(
            Finding(
                "onnxruntime",
                "missing",
                "onnxruntime and onnxruntime-gpu are both installed and conflict; uninstall one of them",
            )
        )
    findings.append(Finding("provider cpu", "ok" if "cpu" in providers else "missing", "ONNX Runtime on the CPU"))
    if "cuda" in providers:
        detail = "available in this ONNX Runtime; the device is tested when a model is loaded"
        findings.append(Finding("provider cuda", "ok", detail))
    else:
        findings.append(Finding("provider cuda", "optional", 'needs an NVIDIA GPU and: pip install "hagmil[gpu]"'))
    return tuple(findings)
