"""Fixtures of the tile tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.tiles.encoded_level import (
    Level,
    write_level,
)


@pytest.fixture
def level(tmp_path: Path) -> Iterator[Level]:
    """A level of 200 x 130 px in tiles of 64 px."""
    found = write_level(tmp_path / "tiles", (200, 130), (64, 64), subsampling=2)
    yield found
    os.close(found.descriptor)
