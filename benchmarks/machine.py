"""What a benchmark ran on, for its report."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from hagmil._versions import versions_of
from hagmil.runtime.tiles.kernel import kernel_name

PACKAGES = (
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
    """Processor, cores, Python, what reads JPEG tiles, and the versions of whatever is installed."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "tile_kernel": kernel_name(),
        "versions": versions_of(*PACKAGES),
    }
