"""Tiles without bytes: white where glass was not scanned, and an error where another level shows tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagmil.errors import SlideFailed
from hagmil.features import read_header
from hagmil.runtime.extract import ExtractOptions, Extractor, extract_many
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.patches.plan import lay_out
from hagmil.runtime.predict import PredictOptions, predict_requests
from hagmil.runtime.slides.open import open_slide
from hagmil.tissue_parameters import TissueParameters
from tests.runtime import slide_files
from tests.runtime.slide_files import APERIO_TEXT, JPEG, TiffPage, tissue_picture, write_tiff
from tests.runtime.small_bundle import write_small_backbone

STAGES = [("coarse", 1.0), ("fine", 0.5)]
TISSUE = TissueParameters()
GLASS, CENTRE = 0, 7  # tiles of 256 px, 5 in a row; the tissue covers the centre
PIXELS = tissue_picture()
PHILIPS = """<?xml version="1.0"?><DataObject ObjectType="DPUfsImport">
<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">
<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>
<Attribute Name="DICOM_PIXEL_SPACING">"0.0005" "0.0005"</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>
<DataObject ObjectType="PixelDataRepresentation">
<Attribute Name="DICOM_PIXEL_SPACING">"0.0005" "0.0005"</Attribute></DataObject>
<DataObject ObjectType="PixelDataRepresentation">
<Attribute Name="DICOM_PIXEL_SPACING">"0.001" "0.001"</Attribute></DataObject>
</Array></Attribute></DataObject></Array></Attribute></DataObject>"""


def write_slide(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, *, missing: Sequence[int] = (), below: Sequence[int] = ()
) -> Path:
    """Write the tissue at 0.5 and 1 um/px; ``missing`` and ``below`` are the missing tiles of both levels."""
    text = {"tiff": "", "aperio": f"{APERIO_TEXT}|MPP = 0.5", "philips": PHILIPS}[kind]
    half = np.ascontiguousarray(PIXELS[::2, ::2])
    pages = [
        TiffPage(PIXELS, 256, JPEG, description=text, resolution=(20_000, 20_000), missing=missing),
        TiffPage(half, 256, JPEG, description=text if kind == "aperio" else "", reduced=True, missing=below),
    ]
    if kind == "philips":
        append = slide_files._append_directory

        def with_software(body: bytearray, tags: Any, *rest: Any) -> tuple[int, int]:
            return append(body, sorted([*tags, (305, "s", list(b"Philips DP v1.0\0"))]), *rest)

        monkeypatch.setattr(slide_files, "_append_directory", with_software)
    return write_tiff(path, pages)


@pytest.mark.parametrize("kind", ["tiff", "aperio", "philips"])
def test_a_slide_that_lacks_tiles_of_tissue_fails(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.tif", kind, monkeypatch, missing=[GLASS, CENTRE])
    with open_slide(path) as slide:
        assert slide.vendor == {"tiff": "generic-tiff"}.get(kind, kind)
        with pytest.raises(SlideFailed, match=r"a\.tif.*no bytes for tiles of tissue, which 4 of") as caught:
            lay_out(slide, STAGES, 64, TISSUE)
    assert caught.value.code == "tile_missing"


def test_patches_left_out_on_request_are_counted_in_the_result_and_not_reused_without_it(
    tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.tif", "tiff", monkeypatch, missing=[GLASS, CENTRE])
    model, out, requests = load_model(small_bundle), tmp_path / "out", slide_requests([str(path)])
    (result,) = predict_requests(requests, model, out, PredictOptions(max_missing=1000))
    assert result.status == "ok"
    assert result.patches_left_out
    (warning,) = result.warnings
    assert warning.startswith(f"patches_left_out: {result.patches_left_out} of ")
    (result,) = predict_requests(requests, model, out, PredictOptions(resume=True, max_missing=1000))
    assert result.status == "ok"
    (result,) = predict_requests(requests, model, out, PredictOptions(resume=True))
    assert (result.status, result.code) == ("failed", "tile_missing")


def test_features_without_the_left_out_patches_say_so_and_are_not_reused_without_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.tif", "tiff", monkeypatch, missing=[GLASS, CENTRE])
    write_small_backbone(tmp_path / "backbone")
    requests = slide_requests([str(path)])

    def extracted(max_missing: int) -> str:
        options = ExtractOptions(stages=tuple(STAGES), patch_px=64, max_missing=max_missing)
        (outcome,) = extract_many(requests, Extractor.open(tmp_path / "backbone", options), tmp_path / "out")
        return outcome.code

    assert extracted(0) == "tile_missing"
    assert extracted(1000) == ""
    assert read_header(tmp_path / "out" / "a.h5").patches_left_out > 0
    assert extracted(1000) == ""
    assert extracted(0) == "exists"


def test_a_missing_tile_that_the_mask_fills_as_a_hole_fails(tmp_path: Path) -> None:
    """The slide has one level, so the overview shows white there too."""
    path = write_tiff(
        tmp_path / "a.tif", [TiffPage(PIXELS, 64, JPEG, resolution=(20_000, 20_000), missing=[19 * 7 + 9])]
    )
    with open_slide(path) as slide, pytest.raises(SlideFailed) as caught:
        lay_out(slide, STAGES, 64, TISSUE)
    assert caught.value.code == "tile_missing"


@pytest.mark.parametrize("kind", ["tiff", "aperio", "philips"])
def test_missing_tiles_of_glass_change_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_slide(tmp_path / "a.tif", "tiff", monkeypatch)
    path = write_slide(tmp_path / "b.tif", kind, monkeypatch, missing=[GLASS])
    with open_slide(whole) as one, open_slide(path) as other:
        np.testing.assert_array_equal(
            lay_out(one, STAGES, 64, TISSUE).coords, lay_out(other, STAGES, 64, TISSUE).coords
        )


def test_patches_that_need_missing_tiles_are_left_out_up_to_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_slide(tmp_path / "a.tif", "tiff", monkeypatch)
    path = write_slide(tmp_path / "b.tif", "tiff", monkeypatch, missing=[CENTRE])
    with open_slide(whole) as slide:
        coords = lay_out(slide, STAGES, 64, TISSUE).coords
    x, y = coords.T
    affected = (x < 768) & (x + 128 > 512) & (y < 512) & (y + 128 > 256)  # tile 7 is at x 512, y 256
    assert affected.sum() == 4
    with open_slide(path) as slide:
        found = lay_out(slide, STAGES, 64, TISSUE, max_missing=4).coords
        with pytest.raises(SlideFailed, match="which 4 of"):
            lay_out(slide, STAGES, 64, TISSUE, max_missing=3)
        for left, upper in found.tolist():
            assert (slide.read_region(0, left, upper, 128, 128) < 255).any(axis=2).mean() > 0.5
    np.testing.assert_array_equal(found, coords[~affected])
    assert "leaving out 4 of" in caplog.text


def test_a_tile_that_the_overview_does_not_show_as_tissue_either_is_glass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.tif", "tiff", monkeypatch, missing=[GLASS], below=[0])
    with open_slide(path) as slide:
        coords = lay_out(slide, STAGES, 64, TISSUE).coords
    assert len(coords) > 0
    assert not ((coords < 384).all(axis=1)).any()  # tile 0 of the second level, at 1 um/px, is 512 level-0 pixels wide


def test_openslide_fills_missing_tiles_of_aperio_from_the_finer_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "a.svs", "aperio", monkeypatch, below=[1])
    with open_slide(path) as slide:
        assert slide.missing_boxes(1).shape == (0, 4)
        region = slide.read_region(1, 256, 0, 256, 256)
        assert np.abs(region.astype(int) - PIXELS[0:512:2, 512:1024:2]).mean() < 4
        assert len(lay_out(slide, STAGES, 64, TISSUE).coords) > 0
