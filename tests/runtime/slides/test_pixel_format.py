"""Pixel formats that are rejected, at level 0 and at every other level."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.open import open_slide
from tests.runtime.slide_files import JPEG, TiffPage, write_tiff
from tests.runtime.slides.generated_slides import PIXELS

HALF = np.ascontiguousarray(PIXELS[::2, ::2])
UNSUPPORTED = {
    "16 bits": (TiffPage(HALF.astype(np.uint16) * 257), "16-bit pixels"),
    "float": (TiffPage(HALF.astype(np.float32), sample_format=3), "floating-point 32-bit pixels"),
    "int8": (TiffPage(HALF, sample_format=2), "signed 8-bit pixels"),
    "CMYK": (TiffPage(np.dstack([HALF, HALF[..., :1]]), photometric=5), r"4-channel CMYK pixels \(photometric 5\)"),
    "two channels": (TiffPage(HALF[..., :2]), "2-channel grey pixels"),
    "old JPEG": (TiffPage(HALF, compression=6, photometric=2), r"old-style JPEG compression \(6\), which is not supp"),
    "palette": (TiffPage(HALF[..., :1], photometric=3), "1-channel palette pixels"),
    "YCbCr without JPEG": (TiffPage(HALF, photometric=6), r"YCbCr pixels \(photometric 6\) that are not JPEG"),
}
"""Pages that no reader decodes correctly, and the part of the message that names the format."""


def rejection(path: Path) -> str:
    with pytest.raises(SlideRejected, match="convert it") as caught:
        open_slide(path)
    assert caught.value.code == "pixel_format"
    return caught.value.message


@pytest.mark.parametrize("missing", [(), (0,)], ids=["libvips", "OpenSlide"])
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_unsupported_pixel_format_is_rejected_at_every_level(
    tmp_path: Path, kind: str, missing: tuple[int, ...]
) -> None:
    page, problem = UNSUPPORTED[kind]
    alone = rejection(write_tiff(tmp_path / "a.tif", [replace(page, missing=missing)]))
    assert re.search(f"a.tif.*{problem}.*at level 0", alone)
    below = rejection(write_tiff(tmp_path / "b.tif", [TiffPage(PIXELS, missing=missing), replace(page, reduced=True)]))
    assert re.search(f"b.tif.*{problem}.*at level 1", below)


def test_a_grey_level_below_a_colour_level_is_rejected(tmp_path: Path) -> None:
    pages = [TiffPage(PIXELS), TiffPage(HALF[..., :1], reduced=True)]
    assert "grey pixels, but level 0 has RGB pixels at level 1" in rejection(write_tiff(tmp_path / "a.tif", pages))


def test_channels_in_separate_pages_are_rejected(tmp_path: Path) -> None:
    assert "in separate pages" in rejection(write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS[..., :1])] * 3))


def test_a_level_of_another_shape_is_checked_if_openslide_reads_it(tmp_path: Path) -> None:
    square = UNSUPPORTED["16 bits"][0].pixels[:120, :120]
    pages = [TiffPage(PIXELS, 64, JPEG, missing=(0,)), TiffPage(square, reduced=True)]
    assert "16-bit pixels at level 1" in rejection(write_tiff(tmp_path / "a.tif", pages))


@pytest.mark.parametrize("tile_px", [64, None], ids=["tiles", "strips"])
def test_ycbcr_with_jpeg_only_is_accepted(tmp_path: Path, tile_px: int | None) -> None:
    """YCbCr stored without JPEG would be shown as RGB by libvips."""
    assert "photometric 6" in rejection(write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, tile_px, photometric=6)]))
    with open_slide(write_tiff(tmp_path / "b.tif", [TiffPage(PIXELS, 64, JPEG)])) as slide:
        assert np.abs(slide.read_region(0, 0, 0, 64, 64).astype(int) - PIXELS[:64, :64]).mean() < 4
