"""What this machine has and lacks, found without importing anything heavy but ONNX Runtime."""

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
    """One thing that was looked for.

    Args:
        name: what.
        state: ``ok``; ``missing`` where ``hagmil infer`` needs it; ``optional`` where only some commands do.
        detail: its version or kind, or what it is for and how to get it.
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
    ("numba", "masks tissue on the CPU", "pip install numba", True),
    ("h5py", "feature and attention files", "pip install h5py", True),
    ("cupy-cuda13x", "arrays on an NVIDIA GPU", 'pip install "hagmil[gpu]"', False),
    ("tensorrt", "TensorRT engines", 'pip install "hagmil[tensorrt]"', False),
    (
        "tensorrt_rtx_cu13_bindings",
        "TensorRT-RTX engines, built without a GPU too",
        'pip install "hagmil[tensorrt-rtx]"',
        False,
    ),
    ("torch", "training and export", 'pip install "hagmil[train,export]"', False),
    ("onnx", "export", 'pip install "hagmil[export]"', False),
    ("timm", "more backbones", 'pip install "hagmil[timm]"', False),
)


def examine() -> tuple[Finding, ...]:
    """Look at this machine.

    Returns:
        Findings in the order in which a person would ask.
    """
    from hagmil._version import __version__

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
    except ImportError as error:  # simplejpeg or NumPy, which inference needs
        return Finding("tile kernel", "missing", f"{error}; reads JPEG tiles: pip install simplejpeg")
    if why_not_compiled is None:
        return Finding("tile kernel", "ok", f"{kernel_name()} (reads JPEG tiles)")
    return Finding("tile kernel", "optional", f"{why_not_compiled}; tiles are read more slowly: {REMEDY}")


def _onnxruntime() -> tuple[Finding, ...]:
    from hagmil.runtime.sessions.onnx import available_providers

    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed_version(name)]
    try:
        providers = available_providers()
    except EnvironmentLacks:
        remedy = 'pip install "hagmil[cpu]", or "hagmil[gpu]" on a machine with an NVIDIA GPU'
        return (Finding("onnxruntime", "missing", f"not installed; runs the models: {remedy}"),)
    findings = [Finding(name, "ok", f"{installed_version(name)} (runs the models)") for name in both]
    if len(both) > 1:
        findings.append(
            Finding(
                "onnxruntime",
                "missing",
                "both kinds are installed and hide one another; uninstall one of them",
            )
        )
    findings.append(Finding("provider cpu", "ok" if "cpu" in providers else "missing", "ONNX Runtime on the CPU"))
    for name in ("cuda", "tensorrt"):
        if name in providers:
            findings.append(Finding(f"provider {name}", "ok", "in this ONNX Runtime; a device is tried at use"))
        else:
            findings.append(
                Finding(f"provider {name}", "optional", 'needs an NVIDIA GPU and: pip install "hagmil[gpu]"')
            )
    return tuple(findings)
