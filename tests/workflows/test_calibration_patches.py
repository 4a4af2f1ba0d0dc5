"""Choice of calibration patches for int8 backbones."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from hagmil._files import sha256_of
from hagmil.errors import UsageError
from hagmil.export.int8.backbone import PatchRequirements
from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures, write_features
from hagmil.phantom import write_cohort
from hagmil.runtime.inputs import SlideRequest
from hagmil.tissue_parameters import TissueParameters
from hagmil.workflows import calibration_patches
from hagmil.workflows.calibration_patches import CalibrationSlide, SlidePatches, calibration_slides

WANTED = PatchRequirements((("coarse", 1.0), ("fine", 0.5)), 64, TissueParameters())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two phantoms in ``slides``."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, slides=2, size_px=1024, seed=3)
    return folder


def _slides(cohort: Path) -> list[Path]:
    return sorted((cohort / "slides").iterdir())


def _write_features(path: Path, slide: Path, *, digest: str | None = None, source: str = "metadata") -> None:
    header = FeatureHeader(
        slide_id=path.stem,
        slide_name=slide.name,
        slide_sha256=sha256_of(slide) if digest is None else digest,
        slide_spacing_um=0.25,
        spacing_source=source,
        backbone_name="tiny",
        backbone_sha256="0" * 64,
        tissue=TissueParameters(threshold=11),
        stages=("fine",),
    )
    bag = StageFeatures("fine", np.zeros((1, 2), np.int64), np.zeros((1, 4), np.float32), 64, 64, 0.5)
    path.parent.mkdir(exist_ok=True)
    write_features(path, SlideFeatures(header, (bag,)))


def _patches(cohort: Path) -> SlidePatches:
    return SlidePatches(calibration_slides([str(cohort / "slides")]), lambda *_: None)


def _rows(batches: object) -> set[bytes]:
    return {patch.tobytes() for batch in batches for patch in batch}  # type: ignore[attr-defined]


def test_patches_are_reproducible_and_calibration_and_comparison_share_none(cohort: Path) -> None:
    patches = _patches(cohort)
    calibrated, again = _rows(patches.calibration(WANTED)), _rows(_patches(cohort).calibration(WANTED))
    held_out = _rows(patches.held_out(WANTED))

    assert calibrated == again
    assert len(calibrated) > 100
    assert len(held_out) > 20
    assert not calibrated & held_out


def test_patches_come_in_small_batches_up_to_the_requested_number(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_patches, "CALIBRATION_PATCHES", 40)
    batches = list(_patches(cohort).calibration(WANTED))

    assert sum(map(len, batches)) == 40
    assert max(map(len, batches)) <= 16
    assert {(batch.dtype, batch.shape[1:]) for batch in batches} == {(np.dtype(np.uint8), (64, 64, 3))}


def test_a_slide_that_cannot_be_read_is_skipped_with_a_warning(
    cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_patches, "CALIBRATION_PATCHES", 40)
    bad = CalibrationSlide(SlideRequest("bad", "bad.tif", tmp_path / "bad.tif"))
    good = CalibrationSlide(SlideRequest("good", "good.tif", _slides(cohort)[0]))

    assert sum(map(len, SlidePatches((bad, good), lambda *_: None).calibration(WANTED))) == 40
    assert 'slide "bad.tif" is not used for calibration' in caplog.text
    with pytest.raises(UsageError, match="no tissue patch could be read from 1 calibration slide;"):
        list(SlidePatches((bad,), lambda *_: None).calibration(WANTED))


def test_slides_of_features_are_found_in_the_folder_beside_them(cohort: Path) -> None:
    for slide in _slides(cohort):
        _write_features(cohort / "features" / f"{slide.stem}.h5", slide, source="override")
    found = calibration_slides([str(cohort / "features")])

    assert {slide.request.path.resolve() for slide in found} == {path.resolve() for path in _slides(cohort)}
    assert {slide.request.spacing_um for slide in found} == {0.25}
    assert {slide.tissue.threshold for slide in found if slide.tissue is not None} == {11}


def test_slides_of_features_are_found_among_the_given_slides(cohort: Path, tmp_path: Path) -> None:
    slide = _slides(cohort)[0]
    _write_features(tmp_path / "a" / "b" / "one.h5", slide) if (tmp_path / "a").mkdir() is None else None
    (found,) = calibration_slides([str(tmp_path / "a" / "b" / "one.h5"), str(slide)])

    assert found.request.path == slide
    assert found.tissue is not None


def test_features_without_their_slides_are_refused_with_advice(
    cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = _slides(cohort)[0]
    shutil.copy(slide, tmp_path / slide.name)
    _write_features(tmp_path / "features" / "one.h5", slide, digest="1" * 64)  # another file of that name is there
    with pytest.raises(
        UsageError, match=r'slide ".*" \(sha256 1{12}\.\.\.\) of feature file .*--calibration FEATURES --calibration'
    ):
        calibration_slides([str(tmp_path / "features")])

    _write_features(tmp_path / "features" / "two.h5", slide)
    with caplog.at_level(logging.WARNING, "hagmil"):
        (found,) = calibration_slides([str(tmp_path / "features")])
    assert found.request.slide_id == "two"
    assert "one.h5" in caplog.text
    with pytest.raises(UsageError, match="does not exist"):
        calibration_slides([str(tmp_path / "none.h5")])
