"""Versions of the packages that take part in a training."""

from __future__ import annotations

import platform

import numpy as np
import torch

from hagmil._versions import __version__


def versions() -> dict[str, str]:
    """Versions of the packages that weights depend on."""
    return {
        "hagmil": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
