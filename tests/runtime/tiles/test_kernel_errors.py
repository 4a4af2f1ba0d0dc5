"""One contract for both tile kernels: damaged tiles, JPEG tables, and invalid arguments."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hagmil.runtime.tiles import kernel as tile_kernel
from tests.runtime.tiles.encoded_level import (
    PIXELS,
    Level,
    compiled_only,
    damage,
    each_kernel,
    encoded,
    stream_of,
)


@each_kernel
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(lambda good: good[: len(good) // 2], "(?i)premature end", id="first half"),
        pytest.param(lambda good: good[:-1], "(?i)premature end", id="one byte missing"),
        pytest.param(lambda good: good[:-2], "(?i)premature end", id="no end marker"),
        pytest.param(lambda good: good[:2], "(?i)premature end|JPEG image", id="start only"),
        pytest.param(
            lambda good: good[:900] + b"\xff\xd9" + good[900:], "(?i)premature|corrupt", id="early end marker"
        ),
        pytest.param(lambda good: good[:-90] + b"\xff\xd0" * 40 + good[-10:], "(?i)corrupt", id="restart markers"),
        pytest.param(lambda _: b"", "not a JPEG stream", id="empty"),
        pytest.param(lambda _: b"\xff", "not a JPEG stream", id="one byte"),
        pytest.param(lambda good: b"\0" + good, "not a JPEG stream", id="no start marker"),
        pytest.param(lambda _: encoded(PIXELS[:32]), "the JPEG image is 64 x 32 px", id="too low"),
        pytest.param(lambda _: encoded(np.tile(PIXELS, (2, 2, 1))), "the JPEG image is 128 x 128 px", id="too large"),
        pytest.param(lambda _: encoded(PIXELS, mode="L"), "does not have three channels", id="grey"),
        pytest.param(lambda _: encoded(PIXELS, mode="CMYK"), "does not have three channels", id="four channels"),
    ],
)
def test_damaged_tiles_are_reported_with_index_and_reason(
    level: Level, kernel: Any, data: Any, message: str, in_place: bool
) -> None:
    damage(level, data(stream_of(level)))
    patches = np.zeros((1, 64, 64, 3), np.uint8)
    corners = np.array([[64, 64] if in_place else [70, 64]], np.int64)
    with pytest.raises(ValueError, match=message) as caught:
        level.read(kernel, corners, patches, indices=[0, 5, 1])
    assert caught.value.args[0] == 5
    level.read(kernel, corners, patches, indices=[0, 1])  # the error has no effect on later calls


@each_kernel
@pytest.mark.parametrize("corner", [(-60, -60), (60, -60), (10, -60), (-60, 60)])
def test_damage_is_found_whichever_part_is_needed(level: Level, kernel: Any, corner: tuple[int, int]) -> None:
    good = stream_of(level, 0)
    for data in (good[: len(good) // 2], good[:-2], good[:-90] + b"\xff\xd0" * 40 + good[-10:]):
        damage(level, data, 0)
        with pytest.raises(ValueError, match=r"(?i)premature|corrupt") as caught:
            level.read(kernel, np.array([corner], np.int64), np.zeros((1, 64, 64, 3), np.uint8), indices=[0])
        assert caught.value.args[0] == 0


TABLES, IMAGE = {"streamtype": 1}, {"streamtype": 2}  # Pillow's options for the two parts of a JPEG stream


@each_kernel
def test_tables_of_one_tile_do_not_affect_tiles_with_shared_tables(level: Level, kernel: Any) -> None:
    tables = encoded(PIXELS, **TABLES)
    level.head = level.head[:-2] + tables[2:]
    shared, own = encoded(PIXELS, **IMAGE), encoded(PIXELS, qtables="web_low", optimize=True)
    scans = encoded(PIXELS, progressive=True)
    order = [shared, own, shared, scans, shared, shared]
    for tile, data in enumerate(order):
        damage(level, data, tile)
    corners = np.array([[tile % 4 * 64, tile // 4 * 64] for tile in range(len(order))], np.int64)
    patches = np.zeros((len(order), 64, 64, 3), np.uint8)
    level.read(kernel, corners, patches, indices=list(range(len(order))))
    for tile, data in enumerate(order):
        whole = tables[:-2] + data[2:] if data is shared else data
        wanted = np.asarray(Image.open(io.BytesIO(whole)))
        assert (patches[tile] == wanted)[:, : 200 - int(corners[tile, 0])].all(), tile
    assert (patches[0] != patches[1]).any()


@each_kernel
def test_a_tile_without_tables_is_not_decoded_with_those_of_another(level: Level, kernel: Any) -> None:
    damage(level, encoded(PIXELS, **IMAGE))
    with pytest.raises(ValueError, match=r"(?i)quantization table") as caught:
        level.read(kernel, np.zeros((1, 2), np.int64), np.zeros((1, 64, 64, 3), np.uint8), indices=[0, 5])
    assert caught.value.args[0] == 5


@compiled_only
def test_shared_tables_that_contain_an_image_are_rejected(level: Level) -> None:
    level.head = encoded(PIXELS)
    with pytest.raises(ValueError, match="contain an image") as caught:
        level.read(tile_kernel, np.zeros((1, 2), np.int64), np.zeros((1, 64, 64, 3), np.uint8))
    assert caught.value.args[0] == 0


@each_kernel
def test_the_tile_is_reported_if_the_file_ends_early_or_cannot_be_read(level: Level, kernel: Any) -> None:
    patches, corners = np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 2), np.int64)
    level.offsets[0] = level.path.stat().st_size - 5
    with pytest.raises(ValueError, match="not a JPEG stream") as caught:
        level.read(kernel, corners, patches)
    assert caught.value.args[0] == 0
    level.offsets[1] = -1
    with pytest.raises(ValueError, match=r"[Ee]rrno 22") as caught:
        level.read(kernel, corners, patches, indices=[1])
    assert caught.value.args[0] == 1


@compiled_only
def test_arrays_with_inconsistent_shapes_are_rejected(level: Level) -> None:
    corners, patches = np.zeros((2, 2), np.int64), np.zeros((2, 64, 64, 3), np.uint8)
    for wrong in (
        {"corners": corners[:1]},
        {"patches": patches[..., :1].copy()},
        {"patches": patches[0]},
        {"indices": [12]},
        {"indices": [-1]},
        {"size": (200, 60), "indices": [4]},  # the tile has bytes, but lies beyond the level
        {"indices": [0], "buffers": [None, None]},
        {"indices": [0], "buffers": [np.zeros(5, np.uint8)]},
        {"indices": [0], "decoded": 1},
        {"indices": ["0"]},
        {"shrink": 0},
        {"shrink": -1},
        {"shrink": 3},
        {"shrink": 2, "corners": corners + 1},
        {"shrink": 512},
    ):
        arguments: dict[str, Any] = {"corners": corners, "patches": patches, **wrong}
        other = replace(level, size=arguments.pop("size", level.size))
        with pytest.raises(TypeError):
            other.read(tile_kernel, **arguments)
    with pytest.raises((BufferError, ValueError), match="contiguous"):
        level.read(tile_kernel, corners, np.zeros((2, 64, 64, 6), np.uint8)[..., ::2])
    for wrong in ((corners[:1], patches), (corners, patches[0]), (corners, patches[..., :1].copy())):
        with pytest.raises(TypeError):
            tile_kernel.start_patches(level.size, level.tile, wrong[0], 1, wrong[1])
    with pytest.raises(TypeError):
        tile_kernel.start_patches(level.size, level.tile, corners, 0, patches)
    for factor, means in ((3, patches[0]), (0, patches[0]), (1, patches[0, :32]), (1, patches[0, ..., :1].copy())):
        with pytest.raises(TypeError):
            tile_kernel.compiled.reduce_pixels(patches[0], factor, means)
    few, weights = np.zeros(64, np.int32), np.full((64, 2), 1 << 21, np.int32)
    for axes in (
        (few[1:], weights, few, weights),
        (few, weights[:, :1].copy(), few, weights),
        (few, weights, few + 63, weights),
        (few - 1, weights, few, weights),
        (few, weights, np.minimum(np.arange(64, dtype=np.int32), 62)[::-1].copy(), weights),  # decreasing
        (few, np.full((64, 3), 1 << 20, np.int32), few, weights),
        (few, weights * 4, few, weights),
        (few, weights + 2, few, weights),
        (few, -weights, few, weights),
    ):
        with pytest.raises(TypeError):
            tile_kernel.compiled.resample_pixels(patches[0], *axes, patches[1])
    for wrong in ((patches[0, ..., :1].copy(), patches[1]), (patches[0], patches[1, ..., 0].copy())):
        with pytest.raises(TypeError):
            tile_kernel.compiled.resample_pixels(wrong[0], few, weights, few, weights, wrong[1])
    tile_kernel.compiled.resample_pixels(patches[0], few, weights, few, weights, patches[1])
    level.read(tile_kernel, corners, patches)
