"""One contract for both tile kernels: decoding tiles into patches, reducing and resampling pixels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.tiles import kernel as tile_kernel
from hagmil.runtime.tiles.filter_weights import linear_filter
from tests.runtime.slide_files import picture
from tests.runtime.tiles.encoded_level import (
    END,
    UNTOUCHED,
    Level,
    compiled_only,
    damage,
    each_kernel,
    stream_of,
    write_level,
)


@each_kernel
@pytest.mark.parametrize("bypass_cache", [True, False])
@pytest.mark.parametrize(("rgb", "subsampling"), [(False, 2), (False, 1), (False, 0), (True, 0)])
@pytest.mark.parametrize("tile", [(240, 240), (256, 256), (512, 512), (64, 32), (16, 48)])
def test_tiles_are_copied_to_the_patches_that_they_cover(
    tmp_path: Path, kernel: Any, tile: tuple[int, int], rgb: bool, subsampling: int, bypass_cache: bool
) -> None:
    size = (5 * tile[0] // 2, 2 * tile[1] - 7)
    level = write_level(tmp_path / "tiles", size, tile, rgb=rgb, subsampling=subsampling)
    rng = np.random.default_rng(1)
    for height, width in ((tile[1], tile[0]), (tile[1] * 2, tile[0] + 3), (31, 23)):
        scattered = rng.integers((-2 * width, -2 * height), np.add(size, (width, height)), (6, 2))
        corners = np.concatenate([[[0, 0], [tile[0], 0]], scattered])
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        level.read(kernel, corners, patches, bypass_cache=bypass_cache)
        assert (patches == level.expected(corners, height, width)).all()
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        for patch in range(len(corners)):  # one by one, so that other rows and columns of the tiles are needed
            level.read(kernel, corners[patch : patch + 1], patches[patch : patch + 1], bypass_cache=bypass_cache)
        assert (patches == level.expected(corners, height, width)).all()
    os.close(level.descriptor)


@each_kernel
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("tile", [(64, 64), (48, 16)])
def test_a_partly_decoded_tile_has_the_pixels_of_the_whole_tile(
    tmp_path: Path, kernel: Any, tile: tuple[int, int], subsampling: int
) -> None:
    level = write_level(tmp_path / "tiles", tile, tile, subsampling=subsampling)
    for width, height in ((1, 1), (2, 3), (5, 2)):
        corners = np.array([[x, y] for x in range(tile[0]) for y in (0, 1, 7, 8, 15, tile[1] - 2, tile[1] - 1)])
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        for patch in range(len(corners)):
            level.read(kernel, corners[patch : patch + 1], patches[patch : patch + 1])
        assert (patches == level.expected(corners, height, width)).all()
    os.close(level.descriptor)


@each_kernel
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("tile", "shrink"),
    [((240, 240), 2), ((240, 240), 3), ((64, 32), 4), ((48, 16), 2), ((16, 48), 8), ((512, 512), 256)],
)
def test_coarser_patches_are_means_of_squares(
    tmp_path: Path, kernel: Any, tile: tuple[int, int], shrink: int, kept: bool
) -> None:
    size = (5 * tile[0] // 2 + 1, 2 * tile[1] - 7)  # squares at both edges lie partly beyond the level
    level = write_level(tmp_path / "tiles", size, tile)
    rng = np.random.default_rng(5)
    tiles = range(len(level.sizes))
    for height, width in ((tile[1] // shrink, tile[0] // shrink), (1, 1), (7, 23)):
        seen = np.array([width, height]) * shrink
        scattered = rng.integers(-2 * seen, np.add(size, seen), (8, 2)) // shrink * shrink
        corners = np.concatenate([[[0, 0], tile], scattered])
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        counts = kernel.start_patches(size, tile, corners, shrink, patches)
        buffers: list[NDArray[np.uint8] | None] = [level.buffer() if kept else None for _ in tiles]
        level.read(kernel, corners, patches, shrink=shrink, buffers=buffers)
        if kept:  # again, from the decoded tiles
            level.read(kernel, corners, patches, shrink=shrink, buffers=buffers, decoded=len(tiles))
        for patch, (x, y) in zip(patches, corners.tolist(), strict=True):
            whole = np.full((height * shrink, width * shrink, 3), 255, np.uint8)
            left, upper = max(x, 0), max(y, 0)
            right, lower = min(x + whole.shape[1], size[0]), min(y + len(whole), size[1])
            if left < right and upper < lower:
                whole[upper - y : lower - y, left - x : right - x] = level.pixels[upper:lower, left:right]
            assert (patch == np.asarray(Image.fromarray(whole).reduce(shrink))).all()
        touched = kernel.start_patches(size, tile, corners, 1, np.empty((len(corners), *seen[::-1], 3), np.uint8))
        assert counts == touched
    os.close(level.descriptor)


@each_kernel
@pytest.mark.parametrize("tile", [(64, 64), (48, 16)])
def test_needed_tiles_are_counted_and_padding_is_white(kernel: Any, tile: tuple[int, int]) -> None:
    (width, height), (tile_width, tile_height) = (200, 130), tile
    corners = np.concatenate([np.random.default_rng(2).integers(-120, 260, (60, 2)), [[0, 0], [64, 64], [150, 100]]])
    patches = np.full((len(corners), 30, 50, 3), UNTOUCHED, np.uint8)
    counts = kernel.start_patches((width, height), tile, corners, 1, patches)
    expected: dict[int, int] = {}
    for patch, (x, y) in zip(patches, corners.tolist(), strict=True):
        inside = [(column, row) for row in range(y, y + 30) for column in range(x, x + 50)]
        inside = [(column, row) for column, row in inside if 0 <= column < width and 0 <= row < height]
        assert (patch == (UNTOUCHED if len(inside) == 30 * 50 else 255)).all()
        for index in dict.fromkeys(
            row // tile_height * -(-width // tile_width) + column // tile_width for column, row in inside
        ):
            expected[index] = expected.get(index, 0) + 1
    assert list(counts.items()) == list(expected.items())


@each_kernel
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64, 255, 256, 300])
def test_pixels_are_reduced_as_by_pillow(kernel: Any, factor: int) -> None:
    rng = np.random.default_rng(factor)
    noise = rng.integers(0, 256, (7 * factor, 5 * factor, 3), np.uint8)
    ramp = np.broadcast_to(np.arange(len(noise))[:, None, None] % 256, noise.shape).astype(np.uint8)
    for pixels in (noise, ramp, np.full_like(noise, 255), np.zeros_like(noise), noise | 0xFE, noise & 1):
        means = np.full((7, 5, 3), UNTOUCHED, np.uint8)
        kernel.reduce_pixels(pixels, factor, means)
        assert (means == np.asarray(Image.fromarray(pixels).reduce(factor))).all()


@compiled_only
@pytest.mark.parametrize("seed", range(12))
def test_random_boxes_are_resampled_as_by_pillow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        side, patch_px = rng.integers(3, 120, 2).tolist()
        box_px = (0.2 + 0.8 * rng.random()) * side
        left, upper = (rng.random(2) * (side - box_px)).tolist()
        box = (left, upper, left + box_px, upper + box_px)
        noise = rng.integers(0, 256, (side, side, 3), np.uint8)
        for pixels in (noise, np.full_like(noise, 255), noise | 0xFE):
            out = np.full((patch_px, patch_px, 3), UNTOUCHED, np.uint8)
            tile_kernel.resample_pixels(pixels, box, out)
            wanted = Image.fromarray(pixels).resize((patch_px, patch_px), Image.Resampling.BILINEAR, box=box)
            assert (out == np.asarray(wanted)).all()


@compiled_only
@pytest.mark.parametrize(("side", "box_px"), [(497, 487.0), (567, 556.52), (520, 511.9), (1040, 1020.3), (60, 30.0)])
def test_patches_are_resampled_as_by_pillow(side: int, box_px: float) -> None:
    pixels, out = picture(side, side), np.empty((256, 256, 3), np.uint8)
    box = (2.37, 1.91, 2.37 + box_px, 1.91 + box_px)
    tile_kernel.resample_pixels(pixels, box, out)
    wanted = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR, box=box)
    assert (out == np.asarray(wanted)).all()


@each_kernel
def test_an_image_with_fewer_pixels_than_filter_taps_is_resampled(kernel: Any) -> None:
    pixels, out = picture(3, 3), np.empty((1, 1, 3), np.uint8)
    assert linear_filter(3, 0.0, 3.0, 1) is None  # three pixels, but an even number of taps
    kernel.resample_pixels(pixels, (0.0, 0.0, 3.0, 3.0), out)
    assert (out == np.asarray(Image.fromarray(pixels).resize((1, 1), Image.Resampling.BILINEAR))).all()


@each_kernel
def test_non_contiguous_views_are_reduced_and_resampled(kernel: Any) -> None:
    part = picture(90, 70)[10:50, 20:60]
    assert not part.flags.c_contiguous
    means, resampled = np.empty((20, 20, 3), np.uint8), np.empty((20, 20, 3), np.uint8)
    kernel.reduce_pixels(part, 2, means)
    kernel.resample_pixels(part, (3.5, 3.5, 35.0, 35.0), resampled)
    image = Image.fromarray(np.ascontiguousarray(part))
    assert (means == np.asarray(image.reduce(2))).all()
    wanted = image.resize((20, 20), Image.Resampling.BILINEAR, box=(3.5, 3.5, 35.0, 35.0))
    assert (resampled == np.asarray(wanted)).all()


@each_kernel
def test_progressive_tiles_are_decoded(tmp_path: Path, kernel: Any) -> None:
    level = write_level(tmp_path / "tiles", (128, 64), (64, 64), progressive=True)
    corners, patches = np.array([[5, 0]], np.int64), np.zeros((1, 64, 100, 3), np.uint8)
    level.read(kernel, corners, patches)
    assert (patches == level.expected(corners, 64, 100)).all()
    corners, patches = np.array([[20, 21], [70, 30]], np.int64), np.zeros((2, 25, 15, 3), np.uint8)
    for patch in range(2):  # only some rows and columns of these tiles are needed
        level.read(kernel, corners[patch : patch + 1], patches[patch : patch + 1], indices=[patch])
    assert (patches == level.expected(corners, 25, 15)).all()
    os.close(level.descriptor)


@each_kernel
def test_pixels_of_an_incomplete_progressive_tile_do_not_depend_on_the_needed_part(tmp_path: Path, kernel: Any) -> None:
    """libjpeg accepts such a tile, and smooths its blocks over their neighbours."""
    level = write_level(tmp_path / "tiles", (128, 128), (128, 128), progressive=True)
    stream = stream_of(level, 0)
    scans = [at for at in range(len(stream) - 1) if stream[at : at + 2] == b"\xff\xda"]
    damage(level, stream[: scans[2]] + END, 0)
    whole = np.zeros((1, 128, 128, 3), np.uint8)
    level.read(kernel, np.zeros((1, 2), np.int64), whole)
    assert (whole[0] != level.pixels).any()
    for corner in ((0, 0), (50, 60), (90, 5), (100, 100)):
        patches = np.zeros((1, 20, 20, 3), np.uint8)
        level.read(kernel, np.array([corner], np.int64), patches)
        assert (patches[0] == whole[0, corner[1] : corner[1] + 20, corner[0] : corner[0] + 20]).all()
    os.close(level.descriptor)


@each_kernel
def test_tiles_are_decoded_into_their_buffers_and_copied_from_them(level: Level, kernel: Any) -> None:
    corners = np.array([[40, 40], [64, 64]], np.int64)
    patches = np.full((2, 64, 64, 3), UNTOUCHED, np.uint8)
    buffers: list[NDArray[np.uint8] | None] = [level.buffer(), level.buffer(), None, level.buffer()]
    level.read(kernel, corners, patches, indices=[5, 0, 4, 1], buffers=buffers)
    assert (patches == level.expected(corners, 64, 64)).all()
    for tile, buffer in zip([5, 0, 4, 1], buffers, strict=True):
        assert buffer is None or (buffer == level.tile_pixels(tile)).all()


@each_kernel
def test_decoded_tiles_are_not_decoded_again(level: Level, kernel: Any) -> None:
    painted = np.full((64, 64, 3), 9, np.uint8)
    patches = np.full((1, 64, 64, 3), UNTOUCHED, np.uint8)
    level.read(
        kernel, np.array([[32, 0]], np.int64), patches, indices=[0, 1], buffers=[painted, level.buffer()], decoded=1
    )
    assert (patches[0, :, :32] == 9).all()
    assert (patches[0, :, 32:] == level.pixels[:64, 64:96]).all()


@each_kernel
def test_only_pixels_of_the_requested_tiles_are_written(level: Level, kernel: Any) -> None:
    patches = np.full((1, 64, 64, 3), UNTOUCHED, np.uint8)
    level.read(kernel, np.array([[32, 0]], np.int64), patches, indices=[1])
    assert (patches[0, :, :32] == UNTOUCHED).all()
    assert (patches[0, :, 32:] == level.pixels[:64, 64:96]).all()


@each_kernel
def test_concurrent_threads_get_correct_pixels(level: Level, kernel: Any) -> None:
    def reads(seed: int) -> bool:
        corners = np.random.default_rng(seed).integers(-40, 200, (16, 2))
        patches = np.full((16, 50, 50, 3), UNTOUCHED, np.uint8)
        level.read(kernel, corners, patches)
        return bool((patches == level.expected(corners, 50, 50)).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(reads, range(40)))
