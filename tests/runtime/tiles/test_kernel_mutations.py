"""Both tile kernels accept and refuse the same damaged tiles, and give the same pixels for those that they accept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.runtime.tiles import kernel as tile_kernel
from hagmil.runtime.tiles import kernel_numpy
from tests.runtime.tiles.encoded_level import (
    HEAD,
    PIXELS,
    Level,
    compiled_only,
    damage,
    encoded,
    stream_of,
    write_level,
)

MUTATIONS = int(os.environ.get("HAGMIL_MUTATIONS", "60"))
"""Mutated tiles per encoding; the long form uses 2,000."""

ENCODINGS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0},
    "RGB": {"rgb": True},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "shared tables": {},
}


def mutate(stream: bytes, rng: np.random.Generator) -> bytes:
    """Change, flip or delete bytes; half of the changes affect the markers before the image."""
    data = bytearray(stream)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(2, len(data) if rng.random() < 0.5 else min(len(data), 640)))
        match int(rng.integers(3)):
            case 0:
                data[at] = int(rng.integers(256))
            case 1:
                data[at] ^= 1 << int(rng.integers(8))
            case _:
                del data[at : at + int(rng.integers(1, 9))]
    return bytes(data)


def read(kernel: Any, level: Level, corner: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Read a patch from tile 0; None if the kernel refuses the tile."""
    patches = np.zeros((1, 64, 64, 3), np.uint8)
    arguments: tuple[Any, ...] | None = None
    try:
        level.read(kernel, np.array([corner], np.int64), patches, indices=[0])
    except ValueError as error:
        arguments = error.args
    if arguments is None:
        return patches[0]
    assert arguments[0] == 0
    assert arguments[1]
    return None


@compiled_only
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_kernels_accept_the_same_mutated_tiles(tmp_path: Path, encoding: str) -> None:
    level = write_level(tmp_path / "tiles", (64, 64), (64, 64), **ENCODINGS[encoding])
    good = stream_of(level, 0)
    if encoding == "shared tables":
        level.head = HEAD + b"\1" + encoded(PIXELS, streamtype=1)[2:]
        good = encoded(PIXELS, streamtype=2)
    rng = np.random.default_rng(len(encoding))
    accepted = 0
    for number in range(MUTATIONS):
        data = mutate(good, rng)
        damage(level, data, 0)
        corner = ((0, 0), (-40, -24), (24, 40))[number % 3]
        ours, theirs = (read(kernel, level, corner) for kernel in (tile_kernel, kernel_numpy))
        assert (ours is None) == (theirs is None), data.hex()
        if ours is not None and theirs is not None:
            np.testing.assert_array_equal(ours, theirs, data.hex())
            accepted += 1
    assert 0 < accepted < MUTATIONS
    os.close(level.descriptor)
