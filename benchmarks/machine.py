"""What a benchmark ran on, for its report."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "hagmil",
    "numpy",
    "onnxruntime",
    "torch",
    "pyvips-binary",
    "simplejpeg",
    "imagecodecs",
    "openslide-bin",
    "tiffslide",
    "fastslide",
    "cucim-cu12",
    "opencv-python-headless",
    "scikit-image",
    "numba",
)


def machine() -> dict[str, object]:
    """Processor, cores, Python, and the versions of whatever is installed."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }
