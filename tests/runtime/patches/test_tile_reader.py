"""Reading patches from encoded tiles: same pixels as the plain reader, each tile decoded once, bounded memory."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray

from hagmil.errors import SlideFailed
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.patches.quadtree import reading_order
from hagmil.runtime.patches.reader import footprint_of, read_into
from hagmil.runtime.patches.stream import stream_patches
from hagmil.runtime.patches.tile_reader import PatchReaderFactory, TilePatchReader, patches_per_tile
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tiles import cache as tile_cache
from hagmil.runtime.tiles import jpeg as jpeg_tiles
from hagmil.runtime.tiles import kernel as tile_kernel
from hagmil.runtime.tiles import kernel_numpy
from hagmil.runtime.tiles.cache import TileCache
from hagmil.runtime.tiles.protocol import AcquiredTiles
from tests.runtime.slide_files import JPEG, RAW, TiffPage, aperio_pages, picture, save_pyramid, write_tiff

SIDE = 64
NOT_COMPILED = pytest.mark.skipif(tile_kernel.why_not_compiled is not None, reason=f"{tile_kernel.why_not_compiled}")


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(tile_kernel, id="compiled", marks=NOT_COMPILED),
        pytest.param(kernel_numpy, id="plain"),
    ],
)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all tests with the compiled kernel and with its NumPy equivalent."""
    monkeypatch.setattr(jpeg_tiles, "start_patches", request.param.start_patches)
    monkeypatch.setattr(jpeg_tiles, "read_tiles", request.param.read_tiles)


@pytest.fixture(scope="module")
def jpeg_pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 x 500 px in tiles of 64 px, 4:2:0; neither side is a multiple of the tile."""
    return save_pyramid(tmp_path_factory.mktemp("tiles") / "pyramid.tif", picture(700, 500), tile_px=SIDE)


@pytest.fixture(scope="module")
def aperio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of 240 px; the second level is four times as coarse as the first."""
    return write_tiff(tmp_path_factory.mktemp("aperio") / "slide.svs", aperio_pages(picture(1000, 700)))


def plan(slide: Slide, stage_um: float, patch_px: int) -> StageGeometry:
    assert slide.spacing_um is not None
    return plan_stages(slide.levels, slide.spacing_um, [("only", stage_um)], patch_px)[0]


def grid(slide: Slide, geometry: StageGeometry, offset: int) -> NDArray[np.int64]:
    """Return all patches of the slide and a border of one patch around it."""
    side = geometry.patch_level0
    columns, rows = (
        np.arange(-1, extent // side + 2) * side + offset for extent in (slide.size.width, slide.size.height)
    )
    return np.stack(np.meshgrid(columns, rows, indexing="ij"), axis=-1).reshape(-1, 2)  # (columns, rows, 2) -> (n, 2)


def by_tiles(
    slide: Slide, geometry: StageGeometry, coords: NDArray[np.int64], *, threads: int = 2, cache_bytes: int = 1 << 30
) -> tuple[NDArray[np.uint8], int | None]:
    """Read patches from tiles and count the decoded tiles; check that the cache is empty afterwards."""
    found = np.zeros((len(coords), geometry.patch_px, geometry.patch_px, 3), np.uint8)
    order = reading_order(coords, geometry.patch_level0)
    with PatchReaderFactory(slide, geometry, coords, cache_bytes) as factory:
        stream = stream_patches(
            slide, geometry, coords[order], batch_size=24, threads=threads, make_reader=factory.make_reader
        )
        with closing(stream) as batches:
            for batch in batches:
                found[order[batch.rows]] = batch.patches
        assert factory.cache is None or factory.cache.held == 0
        return found, factory.decoded_tiles


def by_plain_reader(slide: Slide, geometry: StageGeometry, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
    patches = np.zeros((len(coords), geometry.patch_px, geometry.patch_px, 3), np.uint8)
    read_into(slide, geometry, coords, patches)
    return patches


@pytest.mark.parametrize("offset", [0, 20, 37])
@pytest.mark.parametrize(
    ("stage_um", "patch_px"),
    [(0.5, 64), (0.5, 48), (0.5, 200), (1.0, 32), (1.0, 64), (0.7, 50), (1.5, 40), (2.9, 32), (4.0, 24), (9.0, 16)],
)
def test_patches_equal_those_of_the_plain_reader(
    jpeg_pyramid: Path, stage_um: float, patch_px: int, offset: int
) -> None:
    with open_slide(jpeg_pyramid) as slide:
        geometry = plan(slide, stage_um, patch_px)
        coords = grid(slide, geometry, offset)
        found, decoded = by_tiles(slide, geometry, coords)
        assert decoded is not None
        assert (found == by_plain_reader(slide, geometry, coords)).all()


@pytest.mark.parametrize("offset", [0, 13, 26])
@pytest.mark.parametrize("stage_um", [0.499, 0.998, 1.497, 1.996, 3.1])
def test_patches_of_an_aperio_file_equal_those_of_the_plain_reader(aperio: Path, stage_um: float, offset: int) -> None:
    with open_slide(aperio) as slide:
        geometry = plan(slide, stage_um, 64)
        coords = grid(slide, geometry, offset)
        found, decoded = by_tiles(slide, geometry, coords)
        assert decoded is not None
        assert (found == by_plain_reader(slide, geometry, coords)).all()


@pytest.mark.parametrize(
    ("stage_um", "offset", "expected"),
    [
        (0.499, 13, True),
        (0.998, 26, True),
        (0.998, 13, False),  # squares lie in two tiles
        (1.497, 39, True),
        (3.493, 0, False),  # tiles of 240 px do not divide by 7
        (3.1, 0, False),
        (239.52, 0, False),  # squares of 480 px
    ],
)
def test_means_are_computed_by_tile_only_if_no_square_lies_in_two_tiles(
    aperio: Path, stage_um: float, offset: int, expected: bool
) -> None:
    with open_slide(aperio) as slide:
        geometry = replace(plan(slide, stage_um, 64), level=0, downsample=1.0)
        coords = grid(slide, geometry, offset)
        with PatchReaderFactory(slide, geometry, coords) as factory:
            reader = factory.make_reader(slide, geometry)
            assert isinstance(reader, TilePatchReader)
            assert reader.can_read_by_tile(footprint_of(geometry).corners(coords)) is expected


def test_a_stage_may_mix_patches_that_can_be_read_by_tile_with_others(
    aperio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: set[bool] = set()

    def recorded(reader: TilePatchReader, corners: NDArray[np.int64]) -> bool:
        results.add(can_read_by_tile(reader, corners))
        return can_read_by_tile(reader, corners)

    can_read_by_tile = TilePatchReader.can_read_by_tile
    monkeypatch.setattr(TilePatchReader, "can_read_by_tile", recorded)
    with open_slide(aperio) as slide:
        geometry = plan(slide, 0.998, 64)
        even = grid(slide, geometry, 0)
        coords = even + (even[:, :1] > 500)  # as on a level that is not exactly a factor of 4 coarser
        found, decoded = by_tiles(slide, geometry, coords)
        assert (found == by_plain_reader(slide, geometry, coords)).all()
    assert results == {True, False}
    assert decoded == 5 * 3


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("stage_um", "offset"), [(0.998, 0), (0.998, 26), (1.497, 0)])
def test_each_tile_is_decoded_once_for_means(aperio: Path, stage_um: float, offset: int, threads: int) -> None:
    with open_slide(aperio) as slide:
        geometry = plan(slide, stage_um, 64)
        assert geometry.level == 0
        _, decoded = by_tiles(slide, geometry, grid(slide, geometry, offset), threads=threads)
    assert decoded == 5 * 3


def test_channels_marked_as_rgb_are_not_decoded_as_ycbcr(tmp_path: Path) -> None:
    path = tmp_path / "rgb.tif"
    image = pyvips.Image.new_from_array(picture(200, 150))
    image.tiffsave(str(path), tile=True, tile_width=64, tile_height=64, compression="jpeg", Q=95, xres=2000, yres=2000)
    with open_slide(path) as slide:
        geometry = plan(slide, 0.5, 64)
        coords = grid(slide, geometry, 10)
        found, decoded = by_tiles(slide, geometry, coords)
        assert decoded == 12
        assert (found == by_plain_reader(slide, geometry, coords)).all()


@pytest.mark.parametrize("offset", [54, 55])
def test_patches_of_a_real_aperio_slide_equal_those_of_the_plain_reader(data_folder: Path, offset: int) -> None:
    with open_slide(data_folder / "slides" / "CMU-1-Small-Region.svs") as slide:
        geometry = plan(slide, 0.998, 128)
        coords = grid(slide, geometry, offset)
        found, decoded = by_tiles(slide, geometry, coords)
        assert decoded == 10 * 13
        assert (found == by_plain_reader(slide, geometry, coords)).all()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("stage_um", "patch_px", "offset"), [(0.5, 64, 0), (0.5, 64, 30), (0.5, 40, 7), (0.8, 64, 5)])
def test_each_tile_is_decoded_once(
    jpeg_pyramid: Path, stage_um: float, patch_px: int, offset: int, threads: int
) -> None:
    with open_slide(jpeg_pyramid) as slide:
        geometry = plan(slide, stage_um, patch_px)
        assert geometry.level == 0
        _, decoded = by_tiles(slide, geometry, grid(slide, geometry, offset), threads=threads)
    assert decoded == 11 * 8


def test_tiles_that_no_patch_needs_are_not_decoded(jpeg_pyramid: Path) -> None:
    with open_slide(jpeg_pyramid) as slide:
        geometry = plan(slide, 0.5, SIDE)
        coords = np.array([[0, 0], [256, 128], [320 + 10, 128]], np.int64)
        _, decoded = by_tiles(slide, geometry, coords)
    assert decoded == 1 + 1 + 2


@pytest.mark.parametrize("stage_um", [0.5, 0.8])
def test_a_small_cache_is_not_exceeded_and_changes_no_pixel(
    jpeg_pyramid: Path, monkeypatch: pytest.MonkeyPatch, stage_um: float
) -> None:
    monkeypatch.setattr(tile_cache, "_MIN_TILES", 4)
    most = 0

    def counted(cache: TileCache, wanted: dict[int, int]) -> AcquiredTiles:
        nonlocal most
        acquired = acquire(cache, wanted)
        most = max(most, cache.held)
        return acquired

    acquire = TileCache.acquire
    monkeypatch.setattr(TileCache, "acquire", counted)
    with open_slide(jpeg_pyramid) as slide:
        geometry = plan(slide, stage_um, 60)
        coords = grid(slide, geometry, 11)
        found, decoded = by_tiles(slide, geometry, coords, threads=1, cache_bytes=0)
        assert (found == by_plain_reader(slide, geometry, coords)).all()
    assert decoded is not None
    assert decoded > 11 * 8
    assert 1 < most <= 4


@pytest.mark.parametrize("stage_um", [0.7, 0.5])
def test_patches_per_tile_counts_the_patches_that_need_each_tile(jpeg_pyramid: Path, stage_um: float) -> None:
    with open_slide(jpeg_pyramid) as slide:
        geometry = plan(slide, stage_um, 50)
        tiles = slide.encoded_tiles(geometry.level)
        assert tiles is not None
        footprint = footprint_of(geometry)
        coords = grid(slide, geometry, 2)  # some begin beyond the edge, in the padding of a tile
        expected = np.zeros((tiles.down, tiles.across), int)
        for x, y in footprint.corners(coords).tolist():
            for row in range(tiles.down):
                for column in range(tiles.across):
                    right, lower = min((column + 1) * SIDE, tiles.width), min((row + 1) * SIDE, tiles.height)
                    across = x < right and column * SIDE < x + footprint.side_px
                    expected[row, column] += across and y < lower and row * SIDE < y + footprint.side_px
        assert patches_per_tile(tiles, footprint, coords).tolist() == expected.ravel().tolist()
        tiles.close()


def test_the_cache_is_empty_after_all_patches_have_been_read(jpeg_pyramid: Path) -> None:
    with open_slide(jpeg_pyramid) as slide:
        for stage_um in (0.5, 0.8):
            geometry = plan(slide, stage_um, 60)
            coords = grid(slide, geometry, 11)
            with PatchReaderFactory(slide, geometry, coords) as factory:
                reader = factory.make_reader(slide, geometry)
                out = np.empty((len(coords), 60, 60, 3), np.uint8)
                reader.read_into(coords, out)
                assert factory.cache is not None
                assert factory.cache.held == 0


def test_a_damaged_tile_is_an_error_that_gives_its_position(tmp_path: Path) -> None:
    path = write_tiff(
        tmp_path / "cut.tif", [TiffPage(picture(256, 192), SIDE, JPEG, resolution=(20_000, 20_000), cut=[6])]
    )
    with open_slide(path) as slide:
        geometry = plan(slide, 0.5, SIDE)
        with pytest.raises(SlideFailed, match=r'"cut\.tif".* level 0, x 128, y 64.*damaged'):
            by_tiles(slide, geometry, grid(slide, geometry, 20))
        intact, decoded = by_tiles(slide, geometry, np.array([[0, 0], [64, 0]], np.int64))
        assert decoded == 2
        assert (intact == by_plain_reader(slide, geometry, np.array([[0, 0], [64, 0]], np.int64))).all()


def test_levels_without_jpeg_tiles_are_read_from_the_slide(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "raw.tif", [TiffPage(picture(256, 192), SIDE, RAW, resolution=(20_000, 20_000))])
    with open_slide(path) as slide:
        geometry = plan(slide, 0.5, SIDE)
        coords = grid(slide, geometry, 5)
        found, decoded = by_tiles(slide, geometry, coords)
        assert decoded is None
        assert (found == by_plain_reader(slide, geometry, coords)).all()


def test_a_file_that_is_truncated_after_opening_is_an_error(tmp_path: Path, jpeg_pyramid: Path) -> None:
    path = tmp_path / "shrinks.tif"
    path.write_bytes(jpeg_pyramid.read_bytes())
    with open_slide(path) as slide:
        geometry = plan(slide, 0.5, SIDE)
        coords = grid(slide, geometry, 0)
        with PatchReaderFactory(slide, geometry, coords) as factory:
            with path.open("r+b") as file:
                file.truncate(64)
            with pytest.raises(SlideFailed, match="damaged"):
                factory.make_reader(slide, geometry).read_into(coords, np.empty((len(coords), SIDE, SIDE, 3), np.uint8))
        with pytest.raises(SlideFailed, match="level 0"):
            slide.encoded_tiles(0)
