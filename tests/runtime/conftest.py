"""Fixtures of the runtime's tests: tiny slides with known pixels, and a small bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.slide_files import picture, save_pyramid, tissue_picture
from tests.runtime.small_bundle import write_small_bundle


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """The picture in the test slides: uint8 (300, 420, 3); neither side is a multiple of a tile or a patch."""
    return picture(420, 300)


@pytest.fixture(scope="session")
def pyramid_path(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8]) -> Path:
    """A JPEG pyramid with tiles of 64 px and downsamples 1, 2, 4 and 8, at 0.5 um/px."""
    return save_pyramid(tmp_path_factory.mktemp("slides") / "pyramid.tif", pixels)


@pytest.fixture(scope="session")
def exact_path(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8]) -> Path:
    """A slide with one losslessly compressed level at 0.5 um/px; its pixels are ``pixels``."""
    path = tmp_path_factory.mktemp("slides") / "exact.tif"
    return save_pyramid(path, pixels, compression="deflate", pyramid=False)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with three stages whose outputs can be computed by hand."""
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="session")
def tissue_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide at 0.5 um/px with one piece of tissue on glass; the position of its darkest part is known."""
    return save_pyramid(tmp_path_factory.mktemp("slides") / "tissue.tif", tissue_picture(), tile_px=256)
