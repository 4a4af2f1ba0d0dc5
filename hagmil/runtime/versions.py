"""Versions of the software that a result depends on."""

from __future__ import annotations

import functools
import platform

from hagmil._versions import versions_of
from hagmil.runtime.tiles.kernel import kernel_name


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, the tile kernel, and the packages that may change a number."""
    return {
        "python": platform.python_version(),
        "tile kernel": kernel_name(),
        **versions_of(
            "numpy",
            "onnxruntime",
            "onnxruntime-gpu",
            "pyvips",
            "pyvips-binary",
            "openslide-bin",
            "simplejpeg",
            "pillow",
            "numba",
        ),
    }
