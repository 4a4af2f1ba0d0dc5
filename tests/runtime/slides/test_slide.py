"""Slides: both readers against OpenSlide, what is a level and what is not, spacing, and broken files."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
from numpy.typing import NDArray

from hagmil.errors import SlideError, SlideFailed, SlideRejected, UsageError
from hagmil.runtime.slides import vips_reader
from hagmil.runtime.slides.open import dicom_series, open_slide
from hagmil.runtime.slides.openslide_reader import OpenSlideReader
from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.runtime.slides.spacing import resolve_spacing
from hagmil.runtime.slides.vips_reader import VipsReader
from hagmil.runtime.tiles.tiff_tags import TiffDirectory
from tests.runtime.slide_files import (
    JPEG,
    JPEG_2000_RGB,
    RAW,
    TiffPage,
    aperio_pages,
    picture,
    save_pyramid,
    write_tiff,
)

PIXELS = picture(500, 330, seed=3)
HALF = np.ascontiguousarray(PIXELS[::2, ::2])
GENERATED = (
    "jpeg", "deflate", "lzw", "one-level", "no-spacing", "rgba", "grey", "inverted-grey",
    "aperio", "aperio-big-endian-bigtiff", "aperio-jpeg2000", "aperio-gap", "gap", "no-unit", "unit-none",
)  # fmt: skip
REAL = ("CMU-1-Small-Region.svs", "boxes.tiff", "fluorescence.ndpi", "boxes_0.dcm", "boxes_1.dcm")


def make(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.tif"
    resolution = (20_000.0, 20_000.0)
    pages = aperio_pages(PIXELS)
    match kind:
        case "jpeg" | "deflate" | "lzw":
            return save_pyramid(path, PIXELS, compression=kind)
        case "one-level":
            return save_pyramid(path, PIXELS, pyramid=False)
        case "no-spacing":
            return save_pyramid(path, PIXELS, spacing_um=None)
        case "rgba":
            return save_pyramid(path, np.dstack([PIXELS, PIXELS[..., ::-1][..., :1]]), compression="deflate")
        case "grey":
            return save_pyramid(path, PIXELS[..., :1])
        case "inverted-grey":
            return write_tiff(path, [TiffPage(PIXELS[..., :1], photometric=0)])
        case "aperio":
            return write_tiff(path, pages)
        case "aperio-big-endian-bigtiff":
            return write_tiff(path, pages, big=True, order=">")
        case "aperio-jpeg2000":
            levels = {0, 2}
            return write_tiff(
                path,
                [replace(p, compression=JPEG_2000_RGB) if i in levels else p for i, p in enumerate(pages)],
            )
        case "aperio-gap":
            return write_tiff(path, [replace(pages[0], missing=[0]), *pages[1:]])
        case "gap":
            return write_tiff(path, [TiffPage(PIXELS, 64, JPEG, missing=[1, 9], resolution=resolution)])
        case "no-unit":
            return write_tiff(path, [TiffPage(PIXELS, resolution=(50_800, 50_800), unit=None)])
        case "unit-none":
            return write_tiff(path, [TiffPage(PIXELS, resolution=resolution, unit=1)])
    raise AssertionError(kind)


@pytest.fixture(params=[*GENERATED, *REAL])
def any_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Each slide that both libvips or we, and OpenSlide, open."""
    if request.param in GENERATED:
        return make(tmp_path, request.param)
    shared: Path = request.getfixturevalue("shared")
    return shared / "slides" / str(request.param)


def reader(path: Path, spacing_um: float | None = None) -> Slide:
    slide = open_slide(path, spacing_um=spacing_um)
    assert isinstance(slide, Slide)
    return slide


def by_openslide(
    slide: openslide.OpenSlide, level: int, x: int, y: int, width: int, height: int
) -> NDArray[np.float64]:
    """A region over white, x and y in the level's pixels, where they are whole level-0 pixels."""
    downsample = slide.level_downsamples[level]
    rgba = np.asarray(slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height)))
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def test_the_facts_agree_with_openslide(any_path: Path) -> None:
    with openslide.OpenSlide(any_path) as theirs, reader(any_path) as ours:
        assert [(level.width, level.height) for level in ours.levels] == list(theirs.level_dimensions)
        assert [level.downsample for level in ours.levels] == list(theirs.level_downsamples)
        assert [level.index for level in ours.levels] == list(range(theirs.level_count))
        assert (ours.size.width, ours.size.height) == theirs.dimensions
        assert ours.vendor == theirs.properties["openslide.vendor"]
        properties = theirs.properties
        power = properties.get("openslide.objective-power")
        assert ours.objective_power == (None if power is None else float(power))
        spacing = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if spacing[0] is None:
            assert ours.metadata.spacing_xy_um is None
        else:
            assert ours.metadata.spacing_xy_um == pytest.approx([float(value) for value in spacing if value], rel=1e-9)


def test_the_pixels_agree_with_openslide(any_path: Path) -> None:
    with openslide.OpenSlide(any_path) as theirs, open_slide(any_path) as ours:
        for level in ours.levels:
            width, height = min(level.width, 700), min(level.height, 600)
            mine = ours.read_region(level.index, 0, 0, width, height)
            assert mine.shape == (height, width, 3)
            assert mine.dtype == np.uint8
            assert np.abs(mine - by_openslide(theirs, level.index, 0, 0, width, height)).max() <= 2


def test_regions_across_the_edge_agree_with_openslide(any_path: Path) -> None:
    with openslide.OpenSlide(any_path) as theirs, open_slide(any_path) as ours:
        width, height = theirs.dimensions
        for x, y in [
            (-37, -20),
            (width - 50, height - 41),
            (-30, height - 10),
            (width // 2 + 3, height // 3 + 1),
        ]:
            mine = ours.read_region(0, x, y, 90, 77)
            assert np.abs(mine - by_openslide(theirs, 0, x, y, 90, 77)).max() <= 2


def test_a_region_beyond_the_edge_is_white(pyramid_path: Path) -> None:
    with open_slide(pyramid_path) as slide:
        for x, y in [(-64, 0), (0, -64), (420, 0), (0, 300), (10**9, -(10**9))]:
            assert (slide.read_region(0, x, y, 64, 64) == 255).all()


def test_a_region_around_the_whole_slide_has_a_white_margin(exact_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_slide(exact_path) as slide:
        region = slide.read_region(0, -5, -7, 440, 320)
    assert (region[7:307, 5:425] == pixels).all()
    region[7:307, 5:425] = 255
    assert (region == 255).all()


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("jpeg", VipsReader),
        ("aperio", VipsReader),
        ("aperio-jpeg2000", OpenSlideReader),
        ("gap", OpenSlideReader),
    ],
)
def test_the_reader_is_chosen_by_content_whatever_the_name_says(tmp_path: Path, kind: str, kept: type[Slide]) -> None:
    for name in ("a.svs", "a.ndpi", "a.tif", "a.mrxs", "plain"):
        path = shutil.copy(make(tmp_path, kind), tmp_path / name)
        with open_slide(Path(path)) as slide:
            assert type(slide) is kept


@pytest.mark.parametrize("name", ["fluorescence.ndpi", "boxes_0.dcm"])
def test_formats_that_libvips_must_not_read_go_to_openslide(shared: Path, tmp_path: Path, name: str) -> None:
    link = tmp_path / "slide.tif"
    link.symlink_to(shared / "slides" / name)
    with open_slide(link) as slide:
        assert type(slide) is OpenSlideReader


def test_the_chosen_reader_is_logged(pyramid_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "hagmil.runtime.slides.open"), open_slide(pyramid_path):
        pass
    assert "read by libvips" in caplog.text


def test_the_extra_pages_of_an_aperio_file_are_neither_levels_nor_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = pyvips.Image.tiffload

    def spy(path: str, page: int = 0, **options: object) -> pyvips.Image:
        opened.append(page)
        return real(path, page=page, **options)

    monkeypatch.setattr(pyvips.Image, "tiffload", spy)
    with open_slide(make(tmp_path, "aperio")) as slide:
        assert [round(level.downsample) for level in slide.levels] == [1, 4]
        for level in slide.levels:
            slide.read_region(level.index, 0, 0, 64, 64)
    assert set(opened) == {0, 2}


def test_levels_may_be_subifds(tmp_path: Path) -> None:
    pages = save_pyramid(tmp_path / "pages.tif", PIXELS, compression="deflate")
    subifds = save_pyramid(tmp_path / "subifds.tif", PIXELS, compression="deflate", subifd=True)
    with open_slide(pages) as one, open_slide(subifds) as other:
        assert one.levels == other.levels
        assert len(one.levels) == 4
        for level in one.levels:
            whole = (level.index, 0, 0, level.width, level.height)
            assert (one.read_region(*whole) == other.read_region(*whole)).all()


@pytest.mark.parametrize(
    "page",
    [
        TiffPage(HALF),
        TiffPage(PIXELS),
        TiffPage(PIXELS, reduced=True),
        TiffPage(picture(120, 120), reduced=True),
        TiffPage(HALF, None, reduced=True),
    ],
    ids=["not marked as reduced", "a second picture", "not smaller", "of another shape", "in strips"],
)
def test_pages_that_are_no_smaller_version_are_no_levels(tmp_path: Path, page: TiffPage) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS), page])) as slide:
        assert len(slide.levels) == 1


def test_levels_are_sorted_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    quarter = np.ascontiguousarray(HALF[::2, ::2])
    pages = [TiffPage(PIXELS), TiffPage(quarter, reduced=True), TiffPage(HALF, reduced=True)]
    with open_slide(write_tiff(tmp_path / "a.tif", pages)) as slide:
        assert [level.width for level in slide.levels] == [500, 250, 125]
        assert (slide.read_region(1, 0, 0, 250, 165) == HALF).all()


def test_a_big_endian_tiff_is_read(tmp_path: Path) -> None:
    pages = [TiffPage(PIXELS, resolution=(20_000, 20_000)), TiffPage(HALF, reduced=True)]
    with open_slide(write_tiff(tmp_path / "a.tif", pages, order=">")) as slide:
        assert len(slide.levels) == 2
        assert slide.spacing_um == pytest.approx(0.5)
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS).all()


def test_a_tiff_in_strips_is_one_level_and_shared_by_its_forks(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "a.tif", PIXELS, compression="lzw", tiled=False, pyramid=False)
    with open_slide(path) as slide, slide.fork() as fork:
        assert len(slide.levels) == 1
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS).all()
        assert (fork.read_region(0, 100, 50, 30, 40) == PIXELS[50:90, 100:130]).all()


def test_a_large_tiff_in_strips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips_reader, "_LARGEST_STRIPPED_BYTES", PIXELS.size - 1)
    path = save_pyramid(tmp_path / "a.tif", PIXELS, compression="lzw", tiled=False, pyramid=False)
    with pytest.raises(SlideRejected, match="vips tiffsave") as caught:
        open_slide(path)
    assert caught.value.code == "not_tiled"


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "a.tif", PIXELS[..., 1:2], compression="deflate", pyramid=False)
    with open_slide(path) as slide:
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS[..., 1:2]).all()


def test_transparent_pixels_are_laid_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((330, 500, 1), np.uint8)
    alpha[:, 100:200], alpha[:, 200:] = 128, 255
    path = save_pyramid(tmp_path / "a.tif", np.dstack([PIXELS, alpha]), compression="deflate", pyramid=False)
    with open_slide(path) as slide:
        region = slide.read_region(0, 0, 0, 500, 330).astype(int)
    assert (region[:, :100] == 255).all()
    assert (region[:, 200:] == PIXELS[:, 200:]).all()
    half = PIXELS[:, 100:200] * (128 / 255) + 127
    assert np.abs(region[:, 100:200] - half).max() <= 1


def test_tiles_that_were_not_scanned_are_white(tmp_path: Path) -> None:
    with open_slide(make(tmp_path, "gap")) as slide:
        region = slide.read_region(0, 0, 0, 500, 330)
    assert (region[:64, 64:128] == 255).all()
    assert (region[64:128, 64:128] == 255).all()
    assert not (region[:64, :64] == 255).all()


@pytest.mark.parametrize(
    "pages",
    [
        [TiffPage(PIXELS.astype(np.uint16) * 257)],
        [TiffPage(np.dstack([PIXELS, PIXELS[..., :1]]), photometric=5)],
        [TiffPage(PIXELS[..., :2])],
        [TiffPage(PIXELS[..., :1])] * 3,
    ],
    ids=["16 bits", "CMYK", "two channels", "channels in pages of their own"],
)
def test_pixels_of_another_kind_are_rejected(tmp_path: Path, pages: list[TiffPage]) -> None:
    with pytest.raises(SlideRejected, match=r"a\.tif.*convert it") as caught:
        open_slide(write_tiff(tmp_path / "a.tif", pages))
    assert caught.value.code == "pixel_format"


def test_a_small_image_before_the_large_one_is_not_taken_for_the_slide(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(picture(60, 40), None), TiffPage(PIXELS)])
    with pytest.raises(SlideFailed, match="starts with a small image"):
        open_slide(path)


@pytest.mark.parametrize(
    ("xy_um", "expected"),
    [
        ((0.25, 0.25), 0.25),
        ((0.25, 0.26), 0.255),
        ((49.0, 49.0), 49.0),
        (None, None),
        ((352.78, 352.78), None),
        ((1000.0, 1000.0), None),
        ((84.67, 84.67), None),
        ((0.001, 0.001), None),
        ((float("inf"), 1.0), None),
        ((float("nan"), 0.5), None),
    ],
)
def test_only_a_spacing_that_a_microscope_can_have_is_believed(
    xy_um: tuple[float, float] | None, expected: float | None
) -> None:
    spacing = resolve_spacing("a.svs", xy_um, None)
    assert spacing.um == (None if expected is None else pytest.approx(expected))
    assert spacing.source == (None if expected is None else "metadata")


def test_pixels_that_are_not_square_are_rejected(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(20_000, 18_500))])
    with pytest.raises(SlideRejected, match="not square") as caught:
        open_slide(path)
    assert caught.value.code == "spacing_anisotropic"
    with open_slide(path, spacing_um=0.5) as slide:
        assert slide.spacing_um == 0.5


def test_pixels_that_are_nearly_square_have_the_mean_spacing(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(20_000, 20_400))])
    with open_slide(path) as slide:
        assert slide.spacing_um == pytest.approx((0.5 + 10_000 / 20_400) / 2)


def test_an_override_wins_over_the_file(pyramid_path: Path) -> None:
    with open_slide(pyramid_path) as plain, open_slide(pyramid_path, spacing_um=0.3) as told:
        assert plain.spacing_um == pytest.approx(0.5)
        assert plain.spacing_source == "metadata"
        assert (told.spacing_um, told.spacing_source) == (0.3, "override")
        with told.fork() as fork:
            assert (fork.spacing_um, fork.spacing_source) == (0.3, "override")


@pytest.mark.parametrize("spacing_um", [0.0, -1.0, float("nan"), float("inf")])
def test_an_override_must_be_a_positive_number(pyramid_path: Path, spacing_um: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        open_slide(pyramid_path, spacing_um=spacing_um)


def test_a_slide_without_spacing_is_rejected_where_one_is_required(tmp_path: Path) -> None:
    for kind in ("no-spacing", "unit-none"):
        with open_slide(make(tmp_path, kind)) as slide:
            assert slide.spacing_um is None
            assert slide.spacing_source is None
            with pytest.raises(SlideRejected) as caught:
                require_spacing(slide)
        assert str(caught.value) == f'slide "{kind}.tif" gives no spacing; pass --spacing-um'
        assert caught.value.code == "spacing_missing"


def test_a_default_of_72_dots_per_inch_is_no_spacing(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reader(shared / "slides" / "boxes.tiff") as slide:
        assert slide.metadata.spacing_xy_um == pytest.approx((352.78, 352.78), abs=0.01)
        assert slide.spacing_um is None
    assert "ignoring the spacing" in caplog.text


def test_an_aperio_number_may_have_a_decimal_comma(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.svs", aperio_pages(PIXELS, "|AppMag = 40|MPP = 0,2520"))
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.spacing_um == pytest.approx(float(theirs.properties["openslide.mpp-x"]))
        assert slide.objective_power == 40


@pytest.mark.parametrize("text", ["", "|MPP = unknown|AppMag = ?", "|MPP|AppMag"])
def test_an_aperio_file_without_numbers_has_no_spacing(tmp_path: Path, text: str) -> None:
    with open_slide(write_tiff(tmp_path / "a.svs", aperio_pages(PIXELS, text))) as slide:
        assert slide.spacing_um is None
        assert slide.objective_power is None


def broken(folder: Path, shared: Path | None, kind: str) -> Path:
    path = folder / "a.svs"
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no slide at all, whatever its name says")
        case "tiff header only":
            path.write_bytes(b"II*\0\x08\0\0\0")
        case "cut":
            whole = save_pyramid(folder / "whole.tif", PIXELS).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "endless directories":
            path.write_bytes(b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0")
        case _:
            assert shared is not None
            return shared / "slides" / kind
    return path


@pytest.mark.parametrize("kind", ["folder", "empty", "text", "tiff header only", "cut", "endless directories"])
def test_what_is_no_slide_fails_with_one_clear_line(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SlideFailed, match=r"a\.svs") as caught:
        open_slide(broken(tmp_path, None, kind))
    assert caught.value.code == "unreadable"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["tiff header only", "cut", "endless directories"])
def test_a_damaged_tiff_file_is_reported_as_cut_off_or_damaged(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SlideFailed, match="the file is cut off or damaged; copy it again"):
        open_slide(broken(tmp_path, None, kind))


@pytest.mark.parametrize("kind", ["broken.svs", "unopenable.tiff"])
def test_a_real_broken_file_fails_with_one_clear_line(shared: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(SlideFailed, match=kind) as caught:
        open_slide(broken(tmp_path, shared, kind))
    assert caught.value.code == "unreadable"
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(SlideFailed, match=r"nowhere\.svs.* does not exist") as caught:
        open_slide(tmp_path / "nowhere.svs")
    assert caught.value.code == "not_found"


def test_tiles_that_do_not_decode_fail_where_they_are_read(shared: Path) -> None:
    with open_slide(shared / "slides" / "unreadable.svs") as slide:
        for _ in range(3):  # libvips gives a tile that failed once as black the second time
            with pytest.raises(SlideFailed, match="level 0, x 0, y 0, 16 x 16 px") as caught:
                slide.read_region(0, 0, 0, 16, 16)
            assert caught.value.code == "unreadable"
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", [JPEG, RAW])
def test_a_tile_that_ends_early_fails_and_is_never_grey_or_black(tmp_path: Path, compression: int) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, 64, compression, cut=[9])])
    with open_slide(path) as slide, slide.fork() as fork:
        for each in (slide, fork, slide):
            with pytest.raises(SlideFailed, match="cannot be decoded"):
                each.read_region(0, 64, 64, 64, 64)
        assert slide.read_region(0, 64, 0, 64, 64).shape == (64, 64, 3)  # tiles beside it can still be read
        with pytest.raises(SlideFailed, match="cannot be decoded"):
            slide.read_region(0, 0, 0, 500, 330)


def test_a_strip_that_ends_early_fails(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, None, RAW, cut=[0])])
    with pytest.raises(SlideFailed, match=r"a\.tif") as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


def test_jpeg_strips_are_refused_because_their_damage_would_go_unnoticed(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, None, JPEG, cut=[0])])
    with pytest.raises(SlideRejected, match="vips tiffsave") as caught:
        open_slide(path)
    assert caught.value.code == "not_tiled"


def test_an_early_end_is_found_by_every_thread_and_blamed_on_its_tile_alone(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, 64, JPEG, cut=[9])])
    damaged: list[bool] = []

    def read(slide: Slide) -> None:
        with slide:
            for x, y in [(0, 0), (64, 64), (128, 0)] * 20:
                try:
                    slide.read_region(0, x, y, 64, 64)
                    assert (x, y) != (64, 64)
                except SlideError:
                    damaged.append((x, y) == (64, 64))

    with open_slide(path) as slide:
        threads = [threading.Thread(target=read, args=(slide.fork(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert damaged == [True] * 80


def test_a_warning_that_somebody_else_left_in_libvips_fails_no_good_read(tmp_path: Path) -> None:
    bad = write_tiff(tmp_path / "bad.tif", [TiffPage(PIXELS, 64, JPEG, cut=[0])])
    good = write_tiff(tmp_path / "good.tif", [TiffPage(PIXELS, 64, RAW)])
    with open_slide(good) as slide:
        pyvips.Region.new(pyvips.Image.tiffload(str(bad))).fetch(0, 0, 64, 64)  # leaves text in the buffer
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS).all()


def test_forks_read_the_same_in_parallel_and_outlive_their_parent(any_path: Path) -> None:
    slide = open_slide(any_path)
    size = (min(slide.size.width, 300), min(slide.size.height, 300))
    expected = slide.read_region(0, 0, 0, *size)
    forks = [slide.fork() for _ in range(4)]
    slide.close()
    same: list[bool] = []

    def read(fork: Slide) -> None:
        with fork:
            same.extend(bool((fork.read_region(0, 0, 0, *size) == expected).all()) for _ in range(3))

    threads = [threading.Thread(target=read, args=(fork,)) for fork in forks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 12


def test_a_closed_slide_says_so_and_closing_twice_is_harmless(any_path: Path) -> None:
    slide = open_slide(any_path)
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read_region(0, 0, 0, 8, 8)
    with pytest.raises(ValueError, match="is closed"):
        slide.fork()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_closing_lets_go_of_the_file(any_path: Path) -> None:
    slide = open_slide(any_path)
    fork = slide.fork()
    for each in (slide, fork):
        each.read_region(0, 0, 0, 8, 8)
        each.close()
    assert str(any_path.resolve()) not in open_files()


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    names = set()
    for descriptor in os.listdir(folder):  # noqa: PTH208 - iterdir fails on the one that closes meanwhile
        try:
            names.add(str((folder / descriptor).readlink()))
        except OSError:
            continue
    return names


def spy_on_open_page(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    opened: list[int] = []
    real = vips_reader.open_page

    def spy(path: Path, directory: TiffDirectory) -> pyvips.Image:
        opened.append(directory.page)
        return real(path, directory)

    monkeypatch.setattr(vips_reader, "open_page", spy)
    return opened


def test_a_page_is_opened_anew_before_its_tile_cache_outgrows_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vips_reader, "_CACHE_BYTES", 16 * 16 * 3 * 20)
    opened = spy_on_open_page(monkeypatch)
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, 16)])  # 32 x 21 tiles
    with open_slide(path) as slide:
        for y in range(0, 330, 16):
            for x in range(0, 500, 16):
                region = slide.read_region(0, x, y, 16, 16)
                part = PIXELS[y : y + 16, x : x + 16]
                assert (region[: part.shape[0], : part.shape[1]] == part).all()
    assert 32 * 21 // 21 <= len(opened) <= 32 * 21 // 21 + 2


def test_a_page_that_fits_into_the_budget_is_opened_once(pyramid_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(pyramid_path) as slide:
        opened = spy_on_open_page(monkeypatch)
        for _ in range(3):
            slide.read_region(0, 0, 0, 420, 300)
    assert len(opened) == 1


def test_a_page_is_opened_anew_after_a_large_read_whose_memory_it_keeps(
    pyramid_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vips_reader, "_LARGE_READ_BYTES", 100 * 100 * 3)
    with open_slide(pyramid_path) as slide:
        opened = spy_on_open_page(monkeypatch)
        for side, pages in ((99, 1), (99, 1), (100, 1), (99, 2), (120, 2), (120, 3)):
            slide.read_region(0, 0, 0, side, side)
            assert len(opened) == pages


def test_the_files_of_a_dicom_series_share_its_name(shared: Path) -> None:
    series = {dicom_series(shared / "slides" / f"boxes_{index}.dcm") for index in (0, 1)}
    assert len(series) == 1
    assert None not in series


def test_a_file_that_is_no_dicom_has_no_series(pyramid_path: Path, tmp_path: Path) -> None:
    assert dicom_series(pyramid_path) is None
    assert dicom_series(tmp_path / "nowhere.dcm") is None
