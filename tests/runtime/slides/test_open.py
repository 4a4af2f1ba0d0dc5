"""Opening a slide: the choice of the reader, the spacing override, and files that are not slides."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from hagmil.errors import SlideFailed, UsageError
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.openslide_reader import OpenSlideReader
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.vips_reader import VipsReader
from tests.runtime.slide_files import TiffPage, save_pyramid, write_tiff
from tests.runtime.slides.generated_slides import PIXELS, write_slide

ZSTANDARD = 50000


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        ("jpeg", VipsReader),
        ("aperio", VipsReader),
        ("aperio-jpeg2000", OpenSlideReader),
        ("gap", OpenSlideReader),
    ],
)
def test_the_reader_is_chosen_by_content_not_by_name(tmp_path: Path, kind: str, reader: type[Slide]) -> None:
    for name in ("a.svs", "a.ndpi", "a.tif", "a.mrxs", "plain"):
        path = shutil.copy(write_slide(tmp_path, kind), tmp_path / name)
        with open_slide(Path(path)) as slide:
            assert type(slide) is reader


@pytest.mark.parametrize("name", ["fluorescence.ndpi", "boxes_0.dcm"])
def test_formats_that_libvips_would_misread_are_read_by_openslide(data_folder: Path, tmp_path: Path, name: str) -> None:
    link = tmp_path / "slide.tif"
    link.symlink_to(data_folder / "slides" / name)
    with open_slide(link) as slide:
        assert type(slide) is OpenSlideReader


def test_the_chosen_reader_is_logged(pyramid_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "hagmil.runtime.slides.open"), open_slide(pyramid_path):
        pass
    assert "read by libvips" in caplog.text


def test_the_spacing_override_takes_precedence_over_the_file(pyramid_path: Path) -> None:
    with open_slide(pyramid_path) as plain, open_slide(pyramid_path, spacing_um=0.3) as overridden:
        assert plain.spacing_um == pytest.approx(0.5)
        assert plain.spacing_source == "metadata"
        assert (overridden.spacing_um, overridden.spacing_source) == (0.3, "override")
        with overridden.fork() as fork:
            assert (fork.spacing_um, fork.spacing_source) == (0.3, "override")


@pytest.mark.parametrize("spacing_um", [0.0, -1.0, float("nan"), float("inf")])
def test_the_spacing_override_must_be_a_positive_number(pyramid_path: Path, spacing_um: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        open_slide(pyramid_path, spacing_um=spacing_um)


def broken(folder: Path, data_folder: Path | None, kind: str) -> Path:
    path = folder / "a.svs"
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a slide, despite its name")
        case "tiff header only":
            path.write_bytes(b"II*\0\x08\0\0\0")
        case "cut":
            whole = save_pyramid(folder / "whole.tif", PIXELS).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "endless directories":
            path.write_bytes(b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0")
        case _:
            assert data_folder is not None
            return data_folder / "slides" / kind
    return path


@pytest.mark.parametrize("kind", ["folder", "empty", "text", "tiff header only", "cut", "endless directories"])
def test_a_file_that_is_not_a_slide_fails_with_a_message_of_one_line(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SlideFailed, match=r"a\.svs") as caught:
        open_slide(broken(tmp_path, None, kind))
    assert caught.value.code == "unreadable"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["tiff header only", "cut", "endless directories"])
def test_a_damaged_tiff_file_is_reported_as_cut_off_or_damaged(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SlideFailed, match="the file is cut off or damaged; copy it again"):
        open_slide(broken(tmp_path, None, kind))


@pytest.mark.parametrize("kind", ["broken.svs", "unopenable.tiff"])
def test_a_real_broken_file_fails_with_a_message_of_one_line(data_folder: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(SlideFailed, match=kind) as caught:
        open_slide(broken(tmp_path, data_folder, kind))
    assert caught.value.code == "unreadable"
    assert "\n" not in str(caught.value)


def test_a_missing_file_fails_with_the_code_not_found(tmp_path: Path) -> None:
    with pytest.raises(SlideFailed, match=r"nowhere\.svs.* does not exist") as caught:
        open_slide(tmp_path / "nowhere.svs")
    assert caught.value.code == "not_found"


def test_an_mrxs_file_without_its_folder_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(SlideFailed, match=r'"a\.mrxs" lacks the folder "a" with its image data'):
        open_slide(path)


def test_zstandard_is_given_to_openslide(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, compression=ZSTANDARD)])) as slide:
        assert type(slide) is OpenSlideReader
