"""Extraction gives the features of inference, for the whole quadtree."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hagmil._files import sha256_of
from hagmil.bundle import BackboneCard
from hagmil.errors import BundleError, DataError, UsageError
from hagmil.features import read_features
from hagmil.runtime import extract as extract_module
from hagmil.runtime.extract import ExtractOptions, Extractor, extract, extract_many, extract_slide, parse_stages
from hagmil.runtime.inference.cascade import run_cascade
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.patches.plan import SlideLayout, lay_out
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.slides.open import open_slide
from tests.fakes.cupy import fake_cupy
from tests.fakes.gpu import Gpu
from tests.fakes.onnxruntime import fake_onnxruntime
from tests.runtime.slide_files import save_pyramid
from tests.runtime.small_bundle import backbone_graph

OPTIONS = ExtractOptions(stages=parse_stages("2,1,0.5"), patch_px=16)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    onnx.save(backbone_graph(), folder / "backbone.onnx")
    card = BackboneCard(
        name="mean-colour",
        sha256=sha256_of(folder / "backbone.onnx"),
        features=3,
        patch_px=None,
        weights="none",
        mean=None,
        std=None,
        opset=20,
        versions={},
    )
    (folder / "backbone.json").write_text(card.model_dump_json())
    return folder


def test_features_of_a_gpu_are_copied_to_the_host(
    tissue_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(gpu))
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(gpu))
    request = slide_requests([str(tissue_path)])[0]
    given = extract_slide(request, Extractor.open(backbone, OPTIONS, provider="cuda", threads=1))
    wanted = extract_slide(request, Extractor.open(backbone, OPTIONS, threads=1))
    for stage, other in zip(given.stages, wanted.stages, strict=True):
        assert isinstance(stage.features, np.ndarray)
        np.testing.assert_allclose(stage.features, other.features, atol=1e-6)
    assert gpu.copies_to_host == 3


def test_rows_are_in_quadtree_order_at_every_stage(tissue_path: Path, backbone: Path) -> None:
    features = extract_slide(slide_requests([str(tissue_path)])[0], Extractor.open(backbone, OPTIONS, threads=1))
    coarse, middle, fine = features.stages
    assert [stage.patch_level0 for stage in features.stages] == [64, 32, 16]
    np.testing.assert_array_equal(middle.coords, children(coarse.coords, 64, 2))
    np.testing.assert_array_equal(fine.coords, children(middle.coords, 32, 2))
    means = fine.features.reshape(len(middle.coords), 4, 3).mean(axis=1)  # (4·n, 3) -> (n, 4, 3) -> (n, 3)
    np.testing.assert_allclose(middle.features, means, atol=0.02)


def test_extracted_features_are_those_of_the_cascade(tissue_path: Path, backbone: Path, small_bundle: Path) -> None:
    features = extract_slide(slide_requests([str(tissue_path)])[0], Extractor.open(backbone, OPTIONS, threads=1))
    model = load_model(small_bundle, threads=1)
    with open_slide(tissue_path) as slide:
        layout = lay_out(slide, OPTIONS.stages, 16, OPTIONS.tissue)
        outcomes = run_cascade(slide, layout.coords, model, layout.plan, EncodeOptions(), clock=StepClock())
    for outcome, stage in zip(outcomes, features.stages, strict=True):
        place = {tuple(corner): row for row, corner in enumerate(stage.coords.tolist())}
        rows = [place[tuple(corner)] for corner in outcome.coords.tolist()]
        np.testing.assert_allclose(outcome.attention, -stage.features[rows, 1], atol=1e-5)


def test_the_feature_file_identifies_slide_and_backbone(tissue_path: Path, backbone: Path, tmp_path: Path) -> None:
    extractor = Extractor.open(backbone, replace(OPTIONS, half=True), threads=1)
    (outcome,) = extract_many(slide_requests([str(tissue_path)]), extractor, tmp_path)
    assert outcome.status == "ok"
    features = read_features(tmp_path / "tissue.h5")
    assert features.header.slide_sha256 == sha256_of(tissue_path)
    assert features.header.backbone_sha256 == sha256_of(backbone / "backbone.onnx")
    assert features.header.stages == ("2um", "1um", "0.5um")
    assert features.stages[0].features.dtype == np.float16


def test_a_slide_without_tissue_has_groups_of_zero_rows(backbone: Path, tmp_path: Path) -> None:
    glass = save_pyramid(tmp_path / "glass.tif", np.full((600, 600, 3), 245, np.uint8))
    (outcome,) = extract_many(
        slide_requests([str(glass)]), Extractor.open(backbone, OPTIONS, threads=1), tmp_path / "features"
    )
    assert (outcome.status, outcome.patches) == ("ok", 0)
    for stage in read_features(tmp_path / "features" / "glass.h5").stages:
        assert stage.coords.shape == (0, 2)
        assert stage.features.shape == (0, 3)


def test_a_failed_slide_is_reported_and_the_next_is_extracted(
    tissue_path: Path, backbone: Path, tmp_path: Path
) -> None:
    requests = slide_requests([str(tmp_path / "gone.svs"), str(tissue_path)])
    outcomes = extract_many(requests, Extractor.open(backbone, OPTIONS, threads=1), tmp_path / "features")
    assert [(outcome.status, outcome.code) for outcome in outcomes] == [("failed", "not_found"), ("ok", "")]


def test_existing_features_are_kept_if_they_come_from_the_same_backbone_and_stages(
    tissue_path: Path, backbone: Path, tmp_path: Path
) -> None:
    requests = slide_requests([str(tissue_path)])
    extract_many(requests, Extractor.open(backbone, OPTIONS, threads=1), tmp_path)
    written = (tmp_path / "tissue.h5").stat().st_mtime_ns
    extract_many(requests, Extractor.open(backbone, OPTIONS, threads=1), tmp_path)
    assert (tmp_path / "tissue.h5").stat().st_mtime_ns == written
    other = replace(OPTIONS, stages=parse_stages("1"))
    with pytest.raises(DataError, match=r"exist already.*--overwrite"):
        extract_many(requests, Extractor.open(backbone, other, threads=1), tmp_path)
    extract_many(requests, Extractor.open(backbone, replace(other, overwrite=True), threads=1), tmp_path)
    assert read_features(tmp_path / "tissue.h5").header.stages == ("1um",)


def test_a_slide_that_is_replaced_during_extraction_fails(
    tissue_path: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.tif", save_pyramid(tmp_path / "other.tif", np.full((64, 64, 3), 245, np.uint8))
    path.write_bytes(tissue_path.read_bytes())
    real = extract_module.lay_out

    def _replacing(*args: Any) -> SlideLayout:
        other.replace(path)
        return real(*args)

    monkeypatch.setattr(extract_module, "lay_out", _replacing)
    (outcome,) = extract_many(
        slide_requests([str(path)]), Extractor.open(backbone, OPTIONS, threads=1), tmp_path / "out"
    )
    assert (outcome.status, outcome.code) == ("failed", "slide_changed")
    assert not (tmp_path / "out" / "a.h5").exists()


def test_a_backbone_for_patches_of_any_size_needs_a_patch_size(backbone: Path) -> None:
    with pytest.raises(UsageError, match="--patch-px"):
        Extractor.open(backbone, replace(OPTIONS, patch_px=None))


def test_an_altered_backbone_is_rejected(backbone: Path, tmp_path: Path) -> None:
    for name in ("backbone.json", "backbone.onnx"):
        (tmp_path / name).write_bytes((backbone / name).read_bytes())
    (tmp_path / "backbone.onnx").write_bytes(b"something else")
    with pytest.raises(BundleError, match="does not match its digest"):
        Extractor.open(tmp_path, OPTIONS)


@pytest.mark.parametrize("text", ["", "2,x", "1,2", "2,0", "1,1"])
def test_stages_that_are_not_spacings_from_coarse_to_fine_are_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="stages"):
        parse_stages(text)


def test_extract_returns_the_features_and_writes_them_only_to_out(
    tissue_path: Path, backbone: Path, tmp_path: Path
) -> None:
    features = extract(str(tissue_path), backbone=str(backbone), stages=(2, 1), patch_px=16)
    assert [stage.name for stage in features.stages] == ["2um", "1um"]
    again = extract(tissue_path, backbone=backbone, stages=(2, 1), patch_px=16, out=str(tmp_path / "out"))
    written = read_features(tmp_path / "out" / "tissue.h5")
    assert written.header == again.header == features.header
    for stage, other in zip(written.stages, features.stages, strict=True):
        np.testing.assert_array_equal(stage.features, other.features)


def test_extract_rejects_stages_that_are_not_in_order(tissue_path: Path, backbone: Path) -> None:
    for stages in ((), (1, 2), (1, 0)):
        with pytest.raises(UsageError, match="coarse to fine"):
            extract(tissue_path, backbone=backbone, stages=stages)


def test_extract_with_a_loaded_model_uses_the_stages_of_the_bundle(tissue_path: Path, small_bundle: Path) -> None:
    model = load_model(small_bundle, threads=1)
    features = extract(tissue_path, backbone=model, half=True)
    assert features.header.stages == ("2um", "1um", "0.5um")
    assert features.header.backbone_sha256 == sha256_of(small_bundle / "backbone.onnx")
    assert features.stages[0].patch_px == 16
    assert features.stages[0].features.dtype == np.float16
