"""Cache folder for engines built on this machine and for the timings that builds share."""

from __future__ import annotations

import os
from pathlib import Path

from hagmil._tensorrt.flavour import Flavour


def default_cache() -> Path:
    """Return ``hagmil/engines`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hagmil" / "engines"


def timing_cache(flavour: Flavour, cache: Path | None = None) -> Path | None:
    """Return the file of timings that builds of a flavour share; None for TensorRT-RTX, which takes no timings.

    Args:
        flavour: the builder; each version has its own file.
        cache: the cache folder; None for the default.
    """
    if flavour.name == "tensorrt-rtx":
        return None
    return (cache or default_cache()) / f"timings.{flavour.name}-{flavour.version}.cache"
