"""The levels and the metadata of TIFF pyramids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips

from hagmil.errors import SlideFailed
from hagmil.runtime.slides.open import open_slide
from tests.runtime.slide_files import TiffPage, aperio_pages, picture, save_pyramid, write_tiff
from tests.runtime.slides.generated_slides import PIXELS, write_slide

HALF = np.ascontiguousarray(PIXELS[::2, ::2])


def test_thumbnail_label_and_macro_of_an_aperio_file_are_not_levels_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    tiffload = pyvips.Image.tiffload

    def spy(path: str, page: int = 0, **options: object) -> pyvips.Image:
        opened.append(page)
        return tiffload(path, page=page, **options)

    monkeypatch.setattr(pyvips.Image, "tiffload", spy)
    with open_slide(write_slide(tmp_path, "aperio")) as slide:
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
    ids=["not marked as reduced", "second picture", "not smaller", "another shape", "in strips"],
)
def test_pages_that_are_not_a_smaller_version_of_level_0_are_not_levels(tmp_path: Path, page: TiffPage) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS), page])) as slide:
        assert len(slide.levels) == 1


def test_levels_are_sorted_by_width(tmp_path: Path) -> None:
    quarter = np.ascontiguousarray(HALF[::2, ::2])
    pages = [TiffPage(PIXELS), TiffPage(quarter, reduced=True), TiffPage(HALF, reduced=True)]
    with open_slide(write_tiff(tmp_path / "a.tif", pages)) as slide:
        assert [level.width for level in slide.levels] == [500, 250, 125]
        assert (slide.read_region(1, 0, 0, 250, 165) == HALF).all()


def test_a_big_endian_tiff_file_is_read(tmp_path: Path) -> None:
    pages = [TiffPage(PIXELS, resolution=(20_000, 20_000)), TiffPage(HALF, reduced=True)]
    with open_slide(write_tiff(tmp_path / "a.tif", pages, order=">")) as slide:
        assert len(slide.levels) == 2
        assert slide.spacing_um == pytest.approx(0.5)
        assert (slide.read_region(0, 0, 0, 500, 330) == PIXELS).all()


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("first", [TiffPage(picture(60, 40), None), TiffPage(HALF, resolution=(20_000, 20_000))])
def test_a_file_that_starts_with_a_small_image_fails(tmp_path: Path, first: TiffPage, reduced: bool) -> None:
    large = TiffPage(PIXELS, resolution=(20_000, 20_000), reduced=reduced)
    with pytest.raises(SlideFailed, match="starts with a small image"):
        open_slide(write_tiff(tmp_path / "a.tif", [first, large]))


def test_aperio_numbers_may_have_a_decimal_comma(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.svs", aperio_pages(PIXELS, "|AppMag = 40|MPP = 0,2520"))
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.spacing_um == pytest.approx(float(theirs.properties["openslide.mpp-x"]))
        assert slide.objective_power == 40


@pytest.mark.parametrize("text", ["", "|MPP = unknown|AppMag = ?", "|MPP|AppMag"])
def test_an_aperio_file_without_numbers_has_no_spacing(tmp_path: Path, text: str) -> None:
    with open_slide(write_tiff(tmp_path / "a.svs", aperio_pages(PIXELS, text))) as slide:
        assert slide.spacing_um is None
        assert slide.objective_power is None
