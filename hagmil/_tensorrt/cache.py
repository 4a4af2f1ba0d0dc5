"""The folder where this machine keeps what it built: engines, and the timings that builds share."""

from __future__ import annotations

import os
from pathlib import Path

from hagmil._tensorrt.flavour import Flavour


def default_cache() -> Path:
    """``hagmil/engines`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hagmil" / "engines"


def timing_cache(flavour: Flavour, cache: Path | None = None) -> Path | None:
    """The file of timings that builds of a flavour share; None with TensorRT-RTX, which measures nothing.

    Args:
        flavour: the builder; timings of another version are of no use.
        cache: the folder; the default one where None.
    """
    if flavour.name == "tensorrt-rtx":
        return None
    return (cache or default_cache()) / f"timings.{flavour.name}-{flavour.version}.cache"
