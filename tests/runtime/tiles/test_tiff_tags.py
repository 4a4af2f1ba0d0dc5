"""Tags of TIFF files; every damage is reported as a TiffError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hagmil.runtime.tiles.tiff_tags import TiffError, read_directories
from tests.runtime.slide_files import (
    JPEG,
    RAW,
    ByteOrder,
    TiffPage,
    aperio_pages,
    picture,
    save_pyramid,
    write_tiff,
)

PIXELS = picture(96, 64)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_tags_of_every_page_are_read(tmp_path: Path, big: bool, order: ByteOrder) -> None:
    pages = [
        TiffPage(PIXELS, 32, JPEG, description="a slide", resolution=(20_000, 10_000), unit=3),
        TiffPage(PIXELS[..., :1], None, RAW, reduced=True),
    ]
    first, second = read_directories(write_tiff(tmp_path / "a.tif", pages, big=big, order=order))
    assert (first.page, first.width, first.height) == (0, 96, 64)
    assert (first.tile_width, first.tile_height, first.tiled) == (32, 32, True)
    assert (first.bits, first.samples, first.sample_format) == ((8, 8, 8), 3, 1)
    assert (first.compression, first.photometric, first.planar) == (7, 6, 1)
    assert (first.description, first.resolution, first.resolution_unit) == ("a slide", (20_000, 10_000), 3)
    assert (first.reduced, first.missing_tiles, first.subdirectories) == (False, False, ())
    assert (second.page, second.bits, second.tiled, second.reduced) == (1, (8,), False, True)
    assert (second.description, second.resolution) == ("", None)


def test_tiles_without_bytes_are_detected(tmp_path: Path) -> None:
    pages = [TiffPage(PIXELS, 32, missing=[4])]
    assert read_directories(write_tiff(tmp_path / "a.tif", pages))[0].missing_tiles


def test_subifds_belong_to_their_page(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "a.tif", picture(200, 150), tile_px=32, subifd=True)
    (page,) = read_directories(path)
    assert [(each.subifd, each.width, each.reduced) for each in page.subdirectories] == [
        (0, 100, True),
        (1, 50, True),
        (2, 25, True),
    ]


@pytest.mark.parametrize(
    "data", [b"", b"II", b"not a TIFF file", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II+\0\x08\0\0\0"]
)
def test_files_that_are_not_tiff_are_rejected(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(TiffError):
        read_directories(path)


def test_directories_that_form_a_cycle_are_an_error(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, 32)])
    data = bytearray(path.read_bytes())
    data[-4:] = data[4:8]
    path.write_bytes(data)
    with pytest.raises(TiffError, match="does not end"):
        read_directories(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    big=st.booleans(),
    place=st.integers(0, 1023),
    junk=st.binary(min_size=1, max_size=12),
    cut=st.integers(0, 400),
)
def test_damage_raises_a_tiff_error_or_is_tolerated(
    tmp_path: Path, big: bool, place: int, junk: bytes, cut: int
) -> None:
    pages = [page for page in aperio_pages(picture(64, 48)) if page.tile_px is not None]
    data = bytearray(write_tiff(tmp_path / "a.tif", pages, big=big).read_bytes())
    start = max(len(data) - 1 - place, 0) if place % 2 else place % 16  # the directories, or the header
    data[start : start + len(junk)] = junk
    path = tmp_path / "damaged.tif"
    path.write_bytes(data[: len(data) - cut])
    try:
        directories = read_directories(path)
    except TiffError:
        return
    assert all(directory.width > 0 and directory.height > 0 for directory in directories)
