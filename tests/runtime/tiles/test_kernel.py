"""One contract over both tile kernels, the compiled one and its plain twin; and that what can be compiled is."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hagmil.runtime.doctor import examine
from hagmil.runtime.tiles import kernel as tile_kernel
from hagmil.runtime.tiles import kernel_numpy
from hagmil.runtime.tiles.filter_weights import linear_filter
from tests.conftest import REPOSITORY
from tests.runtime.slide_files import picture

HEAD = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
END = b"\xff\xd9"
UNTOUCHED = 77
SOURCE = REPOSITORY / "hagmil" / "runtime" / "tiles" / "_tile_kernel.c"
PLAIN = tile_kernel.why_not_compiled is not None

compiled_only = pytest.mark.skipif(PLAIN, reason=f"the tile kernel is not compiled: {tile_kernel.why_not_compiled}")

KERNELS = [
    pytest.param(tile_kernel, id="compiled", marks=compiled_only),
    pytest.param(kernel_numpy, id="plain"),
]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


@dataclass
class Level:
    """Encoded tiles in a file, and the pixels that they hold."""

    descriptor: int
    head: bytes
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    size: tuple[int, int]
    tile: tuple[int, int]
    pixels: NDArray[np.uint8]  # whole tiles, beyond the level's edges too
    path: Path

    @property
    def across(self) -> int:
        return -(-self.size[0] // self.tile[0])

    def tile_pixels(self, index: int) -> NDArray[np.uint8]:
        row, column = divmod(index, self.across)
        width, height = self.tile
        return self.pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]

    def read(
        self,
        kernel: Any,
        corners: NDArray[np.int64],
        patches: NDArray[np.uint8],
        *,
        indices: list[int] | None = None,
        memories: list[NDArray[np.uint8] | None] | None = None,
        decoded: int = 0,
        shrink: int = 1,
        bypass_cache: bool = True,
    ) -> None:
        indices = list(range(len(self.sizes))) if indices is None else indices
        memories = [None] * len(indices) if memories is None else memories
        arrays = self.offsets, self.sizes, self.size, self.tile, indices, memories, decoded, corners, shrink, patches
        kernel.read_tiles(self.descriptor, self.head, *arrays, self.memory(), bypass_cache)

    def memory(self) -> NDArray[np.uint8]:
        return np.full((self.tile[1], self.tile[0], 3), 3, np.uint8)

    def expected(self, corners: NDArray[np.int64], height: int, width: int) -> NDArray[np.uint8]:
        """Patches as slices of the pixels; what lies outside of the level is left as it was."""
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        for patch, (x, y) in zip(patches, corners.tolist(), strict=True):
            left, upper = max(x, 0), max(y, 0)
            right, lower = min(x + width, self.size[0]), min(y + height, self.size[1])
            if left < right and upper < lower:
                patch[upper - y : lower - y, left - x : right - x] = self.pixels[upper:lower, left:right]
        return patches


def write_level(
    path: Path, size: tuple[int, int], tile: tuple[int, int], *, rgb: bool = False, **options: Any
) -> Level:
    """Tiles as they lie in a TIFF file, by Pillow."""
    across, down = -(-size[0] // tile[0]), -(-size[1] // tile[1])
    whole = picture(across * tile[0], down * tile[1])
    pixels, body, offsets, sizes = np.empty_like(whole), bytearray(b"II*\0"), [], []
    for row in range(0, len(whole), tile[1]):
        for column in range(0, whole.shape[1], tile[0]):
            part = slice(row, row + tile[1]), slice(column, column + tile[0])
            data = encoded(whole[part], keep_rgb=rgb, **options)
            pixels[part] = np.asarray(Image.open(io.BytesIO(data)))
            offsets.append(len(body))
            sizes.append(len(data))
            body += data
    path.write_bytes(body)
    places = np.array(offsets, np.int64), np.array(sizes, np.int64)
    head = HEAD + (b"\x00" if rgb else b"\x01") + END
    return Level(os.open(path, os.O_RDONLY), head, *places, size, tile, pixels, path)


def encoded(pixels: NDArray[np.uint8], *, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=85, **options)
    return stream.getvalue()


@pytest.fixture
def level(tmp_path: Path) -> Iterator[Level]:
    """200 x 130 px in tiles of 64."""
    found = write_level(tmp_path / "tiles", (200, 130), (64, 64), subsampling=2)
    yield found
    os.close(found.descriptor)


@each_kernel
@pytest.mark.parametrize("bypass_cache", [True, False])
@pytest.mark.parametrize(("rgb", "subsampling"), [(False, 2), (False, 1), (False, 0), (True, 0)])
@pytest.mark.parametrize("tile", [(240, 240), (256, 256), (512, 512), (64, 32), (16, 48)])
def test_patches_get_what_tiles_cover_of_them(
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
        for patch in range(len(corners)):  # each by itself, so that other rows and columns are needed of the tiles
            level.read(kernel, corners[patch : patch + 1], patches[patch : patch + 1], bypass_cache=bypass_cache)
        assert (patches == level.expected(corners, height, width)).all()
    os.close(level.descriptor)


@each_kernel
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("tile", [(64, 64), (48, 16)])
def test_a_few_pixels_of_a_tile_are_those_of_the_whole(
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
def test_patches_get_the_means_of_squares_where_they_are_coarser(
    tmp_path: Path, kernel: Any, tile: tuple[int, int], shrink: int, kept: bool
) -> None:
    size = (5 * tile[0] // 2 + 1, 2 * tile[1] - 7)  # squares at both edges are there in part only
    level = write_level(tmp_path / "tiles", size, tile)
    rng = np.random.default_rng(5)
    tiles = range(len(level.sizes))
    for height, width in ((tile[1] // shrink, tile[0] // shrink), (1, 1), (7, 23)):
        seen = np.array([width, height]) * shrink
        scattered = rng.integers(-2 * seen, np.add(size, seen), (8, 2)) // shrink * shrink
        corners = np.concatenate([[[0, 0], tile], scattered])
        patches = np.full((len(corners), height, width, 3), UNTOUCHED, np.uint8)
        counts = kernel.start_patches(size, tile, corners, shrink, patches)
        memories: list[NDArray[np.uint8] | None] = [level.memory() if kept else None for _ in tiles]
        level.read(kernel, corners, patches, shrink=shrink, memories=memories)
        if kept:  # and once more from what is decoded
            level.read(kernel, corners, patches, shrink=shrink, memories=memories, decoded=len(tiles))
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
def test_tiles_that_patches_need_are_counted_and_what_is_beyond_the_level_is_white(
    kernel: Any, tile: tuple[int, int]
) -> None:
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
def test_pixels_are_reduced_as_pillow_reduces_them(kernel: Any, factor: int) -> None:
    rng = np.random.default_rng(factor)
    noise = rng.integers(0, 256, (7 * factor, 5 * factor, 3), np.uint8)
    ramp = np.broadcast_to(np.arange(len(noise))[:, None, None] % 256, noise.shape).astype(np.uint8)
    for pixels in (noise, ramp, np.full_like(noise, 255), np.zeros_like(noise), noise | 0xFE, noise & 1):
        means = np.full((7, 5, 3), UNTOUCHED, np.uint8)
        kernel.reduce_pixels(pixels, factor, means)
        assert (means == np.asarray(Image.fromarray(pixels).reduce(factor))).all()


@compiled_only
@pytest.mark.parametrize("seed", range(12))
def test_pixels_are_resampled_as_pillow_resamples_them(seed: int) -> None:
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
def test_patches_are_resampled_as_pillow_resamples_them(side: int, box_px: float) -> None:
    pixels, out = picture(side, side), np.empty((256, 256, 3), np.uint8)
    box = (2.37, 1.91, 2.37 + box_px, 1.91 + box_px)
    tile_kernel.resample_pixels(pixels, box, out)
    wanted = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR, box=box)
    assert (out == np.asarray(wanted)).all()


@each_kernel
def test_a_picture_with_fewer_pixels_than_a_filter_takes_is_resampled_too(kernel: Any) -> None:
    pixels, out = picture(3, 3), np.empty((1, 1, 3), np.uint8)
    assert linear_filter(3, 0.0, 3.0, 1) is None  # three of them, and taps are even
    kernel.resample_pixels(pixels, (0.0, 0.0, 3.0, 3.0), out)
    assert (out == np.asarray(Image.fromarray(pixels).resize((1, 1), Image.Resampling.BILINEAR))).all()


@each_kernel
def test_parts_of_a_picture_are_reduced_and_resampled_where_they_lie(kernel: Any) -> None:
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
def test_progressive_tiles_are_decoded_too(tmp_path: Path, kernel: Any) -> None:
    level = write_level(tmp_path / "tiles", (128, 64), (64, 64), progressive=True)
    corners, patches = np.array([[5, 0]], np.int64), np.zeros((1, 64, 100, 3), np.uint8)
    level.read(kernel, corners, patches)
    assert (patches == level.expected(corners, 64, 100)).all()
    corners, patches = np.array([[20, 21], [70, 30]], np.int64), np.zeros((2, 25, 15, 3), np.uint8)
    for patch in range(2):  # of whose tiles only some rows and columns are needed
        level.read(kernel, corners[patch : patch + 1], patches[patch : patch + 1], indices=[patch])
    assert (patches == level.expected(corners, 25, 15)).all()
    os.close(level.descriptor)


@each_kernel
def test_of_a_progressive_tile_that_lacks_scans_the_same_pixels_come_whatever_is_needed(
    tmp_path: Path, kernel: Any
) -> None:
    """Such a tile is no error to libjpeg, which smooths blocks over their neighbours then."""
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
def test_tiles_are_decoded_to_their_memory_and_copied_from_it(level: Level, kernel: Any) -> None:
    corners = np.array([[40, 40], [64, 64]], np.int64)
    patches = np.full((2, 64, 64, 3), UNTOUCHED, np.uint8)
    memories: list[NDArray[np.uint8] | None] = [level.memory(), level.memory(), None, level.memory()]
    level.read(kernel, corners, patches, indices=[5, 0, 4, 1], memories=memories)
    assert (patches == level.expected(corners, 64, 64)).all()
    for tile, memory in zip([5, 0, 4, 1], memories, strict=True):
        assert memory is None or (memory == level.tile_pixels(tile)).all()


@each_kernel
def test_tiles_that_are_decoded_are_not_decoded_again(level: Level, kernel: Any) -> None:
    painted = np.full((64, 64, 3), 9, np.uint8)
    patches = np.full((1, 64, 64, 3), UNTOUCHED, np.uint8)
    level.read(
        kernel, np.array([[32, 0]], np.int64), patches, indices=[0, 1], memories=[painted, level.memory()], decoded=1
    )
    assert (patches[0, :, :32] == 9).all()
    assert (patches[0, :, 32:] == level.pixels[:64, 64:96]).all()


@each_kernel
def test_only_the_tiles_that_are_asked_for_are_written(level: Level, kernel: Any) -> None:
    patches = np.full((1, 64, 64, 3), UNTOUCHED, np.uint8)
    level.read(kernel, np.array([[32, 0]], np.int64), patches, indices=[1])
    assert (patches[0, :, :32] == UNTOUCHED).all()
    assert (patches[0, :, 32:] == level.pixels[:64, 64:96]).all()


@each_kernel
def test_threads_do_not_disturb_one_another(level: Level, kernel: Any) -> None:
    def reads(seed: int) -> bool:
        corners = np.random.default_rng(seed).integers(-40, 200, (16, 2))
        patches = np.full((16, 50, 50, 3), UNTOUCHED, np.uint8)
        level.read(kernel, corners, patches)
        return bool((patches == level.expected(corners, 50, 50)).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(reads, range(40)))


def damage(level: Level, data: bytes, tile: int = 5) -> None:
    """Put other bytes in a tile's place."""
    level.offsets[tile], level.sizes[tile] = level.path.stat().st_size, len(data)
    with level.path.open("ab") as file:
        file.write(data)


def stream_of(level: Level, tile: int = 5) -> bytes:
    start = int(level.offsets[tile])
    return level.path.read_bytes()[start : start + int(level.sizes[tile])]


PIXELS = picture(64, 64)


@each_kernel
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(lambda good: good[: len(good) // 2], "(?i)premature end", id="half"),
        pytest.param(lambda good: good[:-1], "(?i)premature end", id="a byte less"),
        pytest.param(lambda good: good[:-2], "(?i)premature end", id="no end"),
        pytest.param(lambda good: good[:2], "(?i)premature end|JPEG image", id="nothing but a start"),
        pytest.param(lambda good: good[:900] + b"\xff\xd9" + good[900:], "(?i)premature|corrupt", id="an early end"),
        pytest.param(lambda good: good[:-90] + b"\xff\xd0" * 40 + good[-10:], "(?i)corrupt", id="restarts"),
        pytest.param(lambda _: b"", "not a JPEG stream", id="empty"),
        pytest.param(lambda _: b"\xff", "not a JPEG stream", id="one byte"),
        pytest.param(lambda good: b"\0" + good, "not a JPEG stream", id="no start"),
        pytest.param(lambda _: encoded(PIXELS[:32]), "the JPEG image is 64 x 32 px", id="lower"),
        pytest.param(lambda _: encoded(np.tile(PIXELS, (2, 2, 1))), "the JPEG image is 128 x 128 px", id="larger"),
        pytest.param(lambda _: encoded(PIXELS, mode="L"), "does not have three channels", id="grey"),
        pytest.param(lambda _: encoded(PIXELS, mode="CMYK"), "does not have three channels", id="four channels"),
    ],
)
def test_damaged_tiles_are_named_with_what_is_wrong(
    level: Level, kernel: Any, data: Any, message: str, in_place: bool
) -> None:
    damage(level, data(stream_of(level)))
    patches = np.zeros((1, 64, 64, 3), np.uint8)
    corners = np.array([[64, 64] if in_place else [70, 64]], np.int64)
    with pytest.raises(ValueError, match=message) as caught:
        level.read(kernel, corners, patches, indices=[0, 5, 1])
    assert caught.value.args[0] == 5
    level.read(kernel, corners, patches, indices=[0, 1])  # nothing of it stays


@each_kernel
@pytest.mark.parametrize("corner", [(-60, -60), (60, -60), (10, -60), (-60, 60)])
def test_damage_is_told_whatever_is_needed_of_the_tile(level: Level, kernel: Any, corner: tuple[int, int]) -> None:
    good = stream_of(level, 0)
    for data in (good[: len(good) // 2], good[:-2], good[:-90] + b"\xff\xd0" * 40 + good[-10:]):
        damage(level, data, 0)
        with pytest.raises(ValueError, match=r"(?i)premature|corrupt") as caught:
            level.read(kernel, np.array([corner], np.int64), np.zeros((1, 64, 64, 3), np.uint8), indices=[0])
        assert caught.value.args[0] == 0


TABLES, IMAGE = {"streamtype": 1}, {"streamtype": 2}  # Pillow's words for the two parts of a JPEG stream


@each_kernel
def test_a_tiles_own_tables_are_its_own_and_shared_ones_are_everybody_elses(level: Level, kernel: Any) -> None:
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
def test_a_tile_without_tables_is_not_decoded_by_those_of_another(level: Level, kernel: Any) -> None:
    damage(level, encoded(PIXELS, **IMAGE))
    with pytest.raises(ValueError, match=r"(?i)quantization table") as caught:
        level.read(kernel, np.zeros((1, 2), np.int64), np.zeros((1, 64, 64, 3), np.uint8), indices=[0, 5])
    assert caught.value.args[0] == 5


@compiled_only
def test_shared_tables_that_hold_an_image_are_refused(level: Level) -> None:
    level.head = encoded(PIXELS)
    with pytest.raises(ValueError, match="contain an image") as caught:
        level.read(tile_kernel, np.zeros((1, 2), np.int64), np.zeros((1, 64, 64, 3), np.uint8))
    assert caught.value.args[0] == 0


@each_kernel
def test_a_file_that_ends_early_or_cannot_be_read_names_the_tile(level: Level, kernel: Any) -> None:
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
def test_arrays_that_do_not_belong_together_are_refused(level: Level) -> None:
    corners, patches = np.zeros((2, 2), np.int64), np.zeros((2, 64, 64, 3), np.uint8)
    for wrong in (
        {"corners": corners[:1]},
        {"patches": patches[..., :1].copy()},
        {"patches": patches[0]},
        {"indices": [12]},
        {"indices": [-1]},
        {"size": (200, 60), "indices": [4]},  # there are bytes of it, but the level ends before it
        {"indices": [0], "memories": [None, None]},
        {"indices": [0], "memories": [np.zeros(5, np.uint8)]},
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
    few, all_of_it = np.zeros(64, np.int32), np.full((64, 2), 1 << 21, np.int32)
    for axes in (
        (few[1:], all_of_it, few, all_of_it),
        (few, all_of_it[:, :1].copy(), few, all_of_it),
        (few, all_of_it, few + 63, all_of_it),
        (few - 1, all_of_it, few, all_of_it),
        (few, all_of_it, np.minimum(np.arange(64, dtype=np.int32), 62)[::-1].copy(), all_of_it),  # it falls
        (few, np.full((64, 3), 1 << 20, np.int32), few, all_of_it),
        (few, all_of_it * 4, few, all_of_it),
        (few, all_of_it + 2, few, all_of_it),
        (few, -all_of_it, few, all_of_it),
    ):
        with pytest.raises(TypeError):
            tile_kernel.compiled.resample_pixels(patches[0], *axes, patches[1])
    for wrong in ((patches[0, ..., :1].copy(), patches[1]), (patches[0], patches[1, ..., 0].copy())):
        with pytest.raises(TypeError):
            tile_kernel.compiled.resample_pixels(wrong[0], few, all_of_it, few, all_of_it, wrong[1])
    tile_kernel.compiled.resample_pixels(patches[0], few, all_of_it, few, all_of_it, patches[1])
    level.read(tile_kernel, corners, patches)


@pytest.fixture
def compile_kernel() -> list[str]:
    """The compiler and what it needs for the kernel's source; skips where these are missing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    command = [compiler, f"-I{sysconfig.get_paths()['include']}", str(SOURCE)]
    found = subprocess.run([*command, "-E", "-o", os.devnull], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"libjpeg-turbo's or Python's headers are missing: {found.stderr.decode().splitlines()[0]}")
    return command


@pytest.mark.usefixtures("compile_kernel")
def test_the_kernel_is_compiled_where_it_can_be() -> None:
    assert tile_kernel.why_not_compiled is None, tile_kernel.why_not_compiled


@compiled_only
def test_without_vectors_the_kernel_makes_the_same_pixels(
    tmp_path: Path, level: Level, compile_kernel: list[str]
) -> None:
    """As on a processor that is none of x86."""
    built = tmp_path / "_tile_kernel.so"
    subprocess.run([*compile_kernel, "-shared", "-fPIC", "-O1", "-U__SSE2__", "-ldl", "-o", built], check=True)
    spec = importlib.util.spec_from_file_location("without_vectors._tile_kernel", built)
    assert spec is not None
    assert spec.loader is not None
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    kernel.open_library(tile_kernel.library)
    corners, patches = np.array([[-5, 3], [70, 70]], np.int64), np.full((2, 64, 64, 3), UNTOUCHED, np.uint8)
    level.read(kernel, corners, patches)
    assert (patches == level.expected(corners, 64, 64)).all()
    pixels, out, wanted = picture(90, 90), np.empty((37, 37, 3), np.uint8), np.empty((37, 37, 3), np.uint8)
    axis = linear_filter(90, 3.5, 80.25, 37)
    assert axis is not None
    kernel.resample_pixels(pixels, axis.first, axis.weights, axis.first, axis.weights, out)
    tile_kernel.resample_pixels(pixels, (3.5, 3.5, 80.25, 80.25), wanted)
    assert (out == wanted).all()


def test_the_doctor_and_reports_name_what_reads_tiles() -> None:
    (finding,) = [finding for finding in examine() if finding.name == "tile kernel"]
    assert finding.state == ("optional" if PLAIN else "ok")
    assert (tile_kernel.REMEDY if PLAIN else tile_kernel.kernel_name()) in finding.detail
    assert tile_kernel.kernel_name().startswith("NumPy" if PLAIN else "compiled, libjpeg-turbo ")


@compiled_only
def test_every_libjpeg_turbo_gives_the_same_pixels(level: Level) -> None:
    corners, chosen = np.random.default_rng(8).integers(-60, 200, (40, 2)), tile_kernel.library
    assert chosen is not None
    try:
        for path in tile_kernel.libraries():
            try:
                tile_kernel.open_first([path])
            except OSError:
                continue  # this machine has another
            patches = np.full((len(corners), 64, 64, 3), UNTOUCHED, np.uint8)
            for patch in range(len(corners)):  # each by itself, so that other rows and columns are needed of the tiles
                level.read(tile_kernel, corners[patch : patch + 1], patches[patch : patch + 1])
            np.testing.assert_array_equal(patches, level.expected(corners, 64, 64))
    finally:
        tile_kernel.open_first([chosen])


@compiled_only
def test_what_is_no_libjpeg_turbo_is_refused_and_the_next_is_tried(tmp_path: Path) -> None:
    chosen, text = tile_kernel.library, tmp_path / "text.so"
    assert chosen is not None
    text.write_text("no library")
    assert tile_kernel.open_first([str(text), "libc.so.6", chosen]) == chosen
    with pytest.raises(OSError, match=r"text\.so.*; libc\.so\.6 has no jpeg_std_error"):
        tile_kernel.open_first([str(text), "libc.so.6"])


@compiled_only
def test_pillows_libjpeg_turbo_is_preferred_and_named_and_without_any_the_twin_is_used() -> None:
    code = (
        "import sys; from pathlib import Path; from unittest import mock\n"
        "with mock.patch.object(Path, 'glob', lambda *_: iter(['/nowhere.so'])):\n"
        "    from hagmil.runtime.tiles import kernel as tile_kernel\n"
        "print(tile_kernel.kernel_name(), tile_kernel.why_not_compiled)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("compiled, libjpeg-turbo of the system", "NumPy, simplejpeg"))
    wheel = any("pillow.libs" in path for path in tile_kernel.libraries())
    assert tile_kernel.kernel_name().endswith("of Pillow") is wheel


def test_without_the_compiled_kernel_its_twin_is_used_and_the_doctor_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['hagmil.runtime.tiles._tile_kernel'] = None\n"
        "from hagmil.runtime.tiles import kernel as tile_kernel, kernel_numpy\n"
        "from hagmil.runtime.doctor import examine\n"
        "assert tile_kernel.read_tiles is kernel_numpy.read_tiles\n"
        "print(tile_kernel.kernel_name(), examine()[-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("NumPy, simplejpeg")
    assert "headers" in done.stdout


def test_reading_tiles_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; import hagmil.runtime.patches.tile_reader"
    subprocess.run([sys.executable, "-c", code], check=True)
