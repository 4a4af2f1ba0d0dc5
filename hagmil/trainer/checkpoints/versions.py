"""Versions of the packages that affect a training."""

from __future__ import annotations

import platform

import numpy as np
import torch

from hagmil._versions import __version__


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect the weights of a model."""
    return {
        "hagmil": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
