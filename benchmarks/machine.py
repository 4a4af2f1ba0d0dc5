"""Description of the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import hagmil
from hagmil.runtime.bench.machine import this_machine

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
    """Return processor, cores, load, Python, decoder of JPEG tiles, and versions of the installed packages."""
    here = this_machine()
    return {
        "processor": here.cpu,
        "cores": here.cores,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "tile_kernel": here.tile_kernel,
        "versions": {"hagmil": hagmil.__version__, **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
