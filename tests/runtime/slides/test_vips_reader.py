"""The libvips reader: pixel formats, damaged tiles, and bounded memory."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import pyvips

from hagmil.errors import SlideError, SlideFailed, SlideRejected
from hagmil.runtime.slides import vips_reader
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tiles.tiff_tags import TiffDirectory
from tests.runtime.slide_files import JPEG, RAW, TiffPage, save_pyramid, write_tiff
from tests.runtime.slides.generated_slides import PIXELS


def test_a_tiff_in_strips_has_one_level_which_forks_share(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "a.tif", PIXELS, compression="lzw", tiled=False, pyramid=False)
    with open_slide(path) as slide, slide.fork() as fork:
        assert len(slide.levels) == 1
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS).all()
        assert (fork.read_region(0, 100, 50, 30, 40) == PIXELS[50:90, 100:130]).all()


def test_a_large_tiff_in_strips_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips_reader, "_LARGEST_STRIPPED_BYTES", PIXELS.size - 1)
    path = save_pyramid(tmp_path / "a.tif", PIXELS, compression="lzw", tiled=False, pyramid=False)
    with pytest.raises(SlideRejected, match="vips tiffsave") as caught:
        open_slide(path)
    assert caught.value.code == "not_tiled"


def test_grey_pixels_are_converted_to_rgb(tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "a.tif", PIXELS[..., 1:2], compression="deflate", pyramid=False)
    with open_slide(path) as slide:
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS[..., 1:2]).all()


def test_transparent_pixels_are_composited_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((330, 500, 1), np.uint8)
    alpha[:, 100:200], alpha[:, 200:] = 128, 255
    path = save_pyramid(tmp_path / "a.tif", np.dstack([PIXELS, alpha]), compression="deflate", pyramid=False)
    with open_slide(path) as slide:
        region = slide.read_region(0, 0, 0, 500, 330).astype(int)
    assert (region[:, :100] == 255).all()
    assert (region[:, 200:] == PIXELS[:, 200:]).all()
    half = PIXELS[:, 100:200] * (128 / 255) + 127
    assert np.abs(region[:, 100:200] - half).max() <= 1


def test_reading_an_undecodable_tile_fails_every_time(data_folder: Path) -> None:
    with open_slide(data_folder / "slides" / "unreadable.svs") as slide:
        for _ in range(3):  # libvips returns a tile that failed once as black
            with pytest.raises(SlideFailed, match="level 0, x 0, y 0, 16 x 16 px") as caught:
                slide.read_region(0, 0, 0, 16, 16)
            assert caught.value.code == "unreadable"
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", [JPEG, RAW])
def test_reading_a_truncated_tile_fails_and_never_gives_grey_or_black(tmp_path: Path, compression: int) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, 64, compression, cut=[9])])
    with open_slide(path) as slide, slide.fork() as fork:
        for each in (slide, fork, slide):
            with pytest.raises(SlideFailed, match="cannot be decoded"):
                each.read_region(0, 64, 64, 64, 64)
        assert slide.read_region(0, 64, 0, 64, 64).shape == (64, 64, 3)  # other tiles can still be read
        with pytest.raises(SlideFailed, match="cannot be decoded"):
            slide.read_region(0, 0, 0, 500, 330)


def test_opening_a_truncated_strip_fails(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, None, RAW, cut=[0])])
    with pytest.raises(SlideFailed, match=r"a\.tif") as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


def test_jpeg_strips_are_rejected_because_damage_is_not_detected(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, None, JPEG, cut=[0])])
    with pytest.raises(SlideRejected, match="vips tiffsave") as caught:
        open_slide(path)
    assert caught.value.code == "not_tiled"


def test_every_thread_detects_a_truncated_tile_and_reads_the_others(tmp_path: Path) -> None:
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


def test_a_warning_left_in_libvips_by_other_code_does_not_fail_a_read(tmp_path: Path) -> None:
    bad = write_tiff(tmp_path / "bad.tif", [TiffPage(PIXELS, 64, JPEG, cut=[0])])
    good = write_tiff(tmp_path / "good.tif", [TiffPage(PIXELS, 64, RAW)])
    with open_slide(good) as slide:
        pyvips.Region.new(pyvips.Image.tiffload(str(bad))).fetch(0, 0, 64, 64)  # leaves text in the error buffer
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS).all()


def spy_on_open_page(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    opened: list[int] = []
    real = vips_reader.open_page

    def spy(path: Path, directory: TiffDirectory) -> pyvips.Image:
        opened.append(directory.page)
        return real(path, directory)

    monkeypatch.setattr(vips_reader, "open_page", spy)
    return opened


def test_a_page_is_reopened_when_its_tile_cache_exceeds_the_budget(
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


def test_a_page_within_the_budget_is_opened_once(pyramid_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(pyramid_path) as slide:
        opened = spy_on_open_page(monkeypatch)
        for _ in range(3):
            slide.read_region(0, 0, 0, 420, 300)
    assert len(opened) == 1


def test_a_page_is_reopened_after_a_large_read(pyramid_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips_reader, "_LARGE_READ_BYTES", 100 * 100 * 3)
    with open_slide(pyramid_path) as slide:
        opened = spy_on_open_page(monkeypatch)
        for side, pages in ((99, 1), (99, 1), (100, 1), (99, 2), (120, 2), (120, 3)):
            slide.read_region(0, 0, 0, side, side)
            assert len(opened) == pages
