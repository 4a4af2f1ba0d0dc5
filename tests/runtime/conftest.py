"""Slides for the runtime's tests: tiny pyramids with a known picture in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.slide_files import picture, save_pyramid


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """The picture in the test slides: uint8 (300, 420, 3); neither side divides by a tile or a patch."""
    return picture(420, 300)


@pytest.fixture(scope="session")
def pyramid_path(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8]) -> Path:
    """A JPEG pyramid of 64-pixel tiles, levels 1, 2, 4 and 8, at 0.5 um/px."""
    return save_pyramid(tmp_path_factory.mktemp("slides") / "pyramid.tif", pixels)


@pytest.fixture(scope="session")
def exact_path(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8]) -> Path:
    """One level without loss, at 0.5 um/px: its pixels are those of ``pixels``."""
    path = tmp_path_factory.mktemp("slides") / "exact.tif"
    return save_pyramid(path, pixels, compression="deflate", pyramid=False)
