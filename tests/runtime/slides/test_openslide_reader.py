"""The OpenSlide reader: tiles that were not scanned, and DICOM series."""

from __future__ import annotations

from pathlib import Path

from hagmil.runtime.slides.open import dicom_series, open_slide
from tests.runtime.slides.generated_slides import write_slide


def test_tiles_that_were_not_scanned_are_white(tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path, "gap")) as slide:
        region = slide.read_region(0, 0, 0, 500, 330)
    assert (region[:64, 64:128] == 255).all()
    assert (region[64:128, 64:128] == 255).all()
    assert not (region[:64, :64] == 255).all()


def test_files_of_one_dicom_series_have_the_same_series_uid(data_folder: Path) -> None:
    series = {dicom_series(data_folder / "slides" / f"boxes_{index}.dcm") for index in (0, 1)}
    assert len(series) == 1
    assert None not in series


def test_other_files_have_no_dicom_series(pyramid_path: Path, tmp_path: Path) -> None:
    assert dicom_series(pyramid_path) is None
    assert dicom_series(tmp_path / "nowhere.dcm") is None
