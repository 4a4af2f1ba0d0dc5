"""The spacing of a slide: plausible values, anisotropic pixels, and defaults of other software."""

from __future__ import annotations

from pathlib import Path

import pytest

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import require_spacing
from hagmil.runtime.slides.spacing import resolve_spacing
from tests.runtime.slide_files import TiffPage, write_tiff
from tests.runtime.slides.generated_slides import PIXELS


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
        ((0.025, 0.025), None),
        ((0.001, 0.001), None),
        ((float("inf"), 1.0), None),
        ((float("nan"), 0.5), None),
    ],
)
def test_implausible_spacings_in_the_metadata_are_ignored(
    xy_um: tuple[float, float] | None, expected: float | None
) -> None:
    spacing = resolve_spacing("a.svs", xy_um, None)
    assert spacing.um == (None if expected is None else pytest.approx(expected))
    assert spacing.source == (None if expected is None else "metadata")


def test_a_slide_with_pixels_that_are_not_square_is_rejected_without_an_override(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(20_000, 18_500))])
    with pytest.raises(SlideRejected, match="not square") as caught:
        open_slide(path)
    assert caught.value.code == "spacing_anisotropic"
    with open_slide(path, spacing_um=0.5) as slide:
        assert slide.spacing_um == 0.5


def test_the_spacing_is_the_mean_of_both_axes(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(20_000, 20_400))])
    with open_slide(path) as slide:
        assert slide.spacing_um == pytest.approx((0.5 + 10_000 / 20_400) / 2)


def test_a_default_of_72_dots_per_inch_is_ignored(data_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_slide(data_folder / "slides" / "boxes.tiff") as slide:
        assert slide.metadata.spacing_xy_um == pytest.approx((352.78, 352.78), abs=0.01)
        assert slide.spacing_um is None
    assert "ignoring the spacing" in caplog.text


def test_an_implausible_spacing_is_rejected_with_the_plausible_range(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(400_000, 400_000))])
    with open_slide(path) as slide, pytest.raises(SlideRejected) as caught:
        require_spacing(slide)
    assert caught.value.code == "spacing_missing"
    assert "spacing of 0.025 x 0.025 um/px (plausible: 0.05 to 50); pass --spacing-um" in caught.value.message
    with open_slide(path, spacing_um=0.025) as slide:
        assert require_spacing(slide) == 0.025


@pytest.mark.parametrize("per_cm", [40_000, 20_000 / 3])
def test_levels_with_contradictory_resolutions_are_rejected_without_an_override(tmp_path: Path, per_cm: float) -> None:
    half = TiffPage(PIXELS[::2, ::2], reduced=True, resolution=(per_cm, per_cm))
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(20_000, 20_000)), half])
    with pytest.raises(SlideRejected, match=r"level 1 has .* 2 times smaller than level 0, which has 0\.5") as caught:
        open_slide(path)
    assert caught.value.code == "spacing_contradictory"
    with open_slide(path, spacing_um=0.5) as slide:
        assert slide.spacing_um == 0.5


@pytest.mark.parametrize("per_cm", [10_000, 20_000, 28.35])
def test_resolutions_of_levels_may_be_scaled_or_copied_or_implausible(tmp_path: Path, per_cm: float) -> None:
    half = TiffPage(PIXELS[::2, ::2], reduced=True, resolution=(per_cm, per_cm))
    path = write_tiff(tmp_path / "a.tif", [TiffPage(PIXELS, resolution=(20_000, 20_000)), half])
    with open_slide(path) as slide:
        assert slide.spacing_um == pytest.approx(0.5)
        assert len(slide.levels) == 2
