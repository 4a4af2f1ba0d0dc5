"""Extraction gives the features of inference, for the whole quadtree."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
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
from hagmil.tissue_parameters import TissueParameters
from tests.fakes.cuda_driver import install_gpu
from tests.fakes.gpu import Gpu
from tests.fakes.onnxruntime import fake_onnxruntime
from tests.runtime.slide_files import save_pyramid
from tests.runtime.small_bundle import backbone_graph, write_small_backbone

OPTIONS = ExtractOptions(stages=parse_stages("2,1,0.5"), patch_px=16)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    write_small_backbone(folder)
    return folder


def test_features_of_a_gpu_are_copied_to_the_host(
    tissue_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(gpu))
    install_gpu(monkeypatch, gpu)
    request = slide_requests([str(tissue_path)])[0]
    extractor = Extractor.open(backbone, OPTIONS, provider="cuda", threads=1)  # tries the patch size once
    copies_before = gpu.copies_to_host
    given = extract_slide(request, extractor)
    wanted = extract_slide(request, Extractor.open(backbone, OPTIONS, threads=1))
    for stage, other in zip(given.stages, wanted.stages, strict=True):
        assert isinstance(stage.features, np.ndarray)
        np.testing.assert_allclose(stage.features, other.features, atol=1e-6)
    assert gpu.copies_to_host - copies_before == 3


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


def test_existing_features_are_kept_if_nothing_that_determines_them_differs(
    tissue_path: Path, backbone: Path, tmp_path: Path
) -> None:
    requests = slide_requests([str(tissue_path)])
    extractor = Extractor.open(backbone, OPTIONS, threads=1)
    extract_many(requests, extractor, tmp_path)
    written = (tmp_path / "tissue.h5").stat().st_mtime_ns
    (outcome,) = extract_many(requests, extractor, tmp_path)
    assert outcome.status == "ok"
    assert (tmp_path / "tissue.h5").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"stages": parse_stages("1")}, "with stages 2um at 2 um/px"),
        ({"stages": (("2um", 3.0), ("1um", 1.5), ("0.5um", 0.75))}, "with stages 2um at 2 um/px"),
        ({"patch_px": 32}, "with patches of 16 px"),
        ({"half": True}, "not as float16"),
        ({"tissue": TissueParameters(threshold=9)}, "with other tissue parameters"),
    ],
)
def test_existing_features_that_differ_fail_the_slide_unless_they_are_replaced(
    changed: dict[str, Any], difference: str, tissue_path: Path, backbone: Path, tmp_path: Path
) -> None:
    requests = slide_requests([str(tissue_path), str(tmp_path / "gone.svs")])
    extract_many(requests, Extractor.open(backbone, OPTIONS, threads=1), tmp_path)
    other = replace(OPTIONS, **changed)
    outcomes = extract_many(requests, Extractor.open(backbone, other, threads=1), tmp_path)
    assert [(outcome.status, outcome.code) for outcome in outcomes] == [("failed", "exists"), ("failed", "not_found")]
    assert f"exist already, {difference}" in outcomes[0].message
    assert "--overwrite" in outcomes[0].message
    extract_many(requests[:1], Extractor.open(backbone, replace(other, overwrite=True), threads=1), tmp_path)
    assert read_features(tmp_path / "tissue.h5").header.stages == tuple(name for name, _ in other.stages)


def test_features_of_a_replaced_slide_or_of_another_spacing_are_not_used(
    tissue_path: Path, backbone: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out"
    path.write_bytes(tissue_path.read_bytes())
    extractor = Extractor.open(backbone, OPTIONS, threads=1)
    extract_many(slide_requests([str(path)]), extractor, out)
    (spaced,) = extract_many(slide_requests([str(path)], spacing_um=0.25), extractor, out)
    assert "at a slide spacing of 0.5 um/px (metadata)" in spaced.message
    save_pyramid(path, np.full((64, 64, 3), 245, np.uint8))
    (replaced,) = extract_many(slide_requests([str(path)]), extractor, out)
    assert "of another slide or of a file that was replaced since (a.tif)" in replaced.message
    with pytest.raises(DataError, match="of another slide") as caught:
        extract(path, backbone=extractor, out=out)
    assert caught.value.code == "exists"
    assert extract(path, backbone=extractor, out=out, overwrite=True) is not None
    assert len(read_features(out / "a.h5").stages[0].coords) == 0


def test_a_damaged_feature_file_fails_its_slide(tissue_path: Path, backbone: Path, tmp_path: Path) -> None:
    requests = slide_requests([str(tissue_path)])
    extractor = Extractor.open(backbone, OPTIONS, threads=1)
    extract_many(requests, extractor, tmp_path)
    path = tmp_path / "tissue.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (outcome,) = extract_many(requests, extractor, tmp_path)
    assert (outcome.status, outcome.code) == ("failed", "features_unreadable")
    assert "--overwrite" in outcome.message
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        rows = file["1um/features"][:-1]
        del file["1um/features"]
        file["1um/features"] = rows
    (outcome,) = extract_many(requests, extractor, tmp_path)
    assert (outcome.status, outcome.code) == ("failed", "features_unreadable")


def test_slides_of_one_name_get_two_feature_files(tissue_path: Path, backbone: Path, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "s1.tif" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(tissue_path.read_bytes())
    extract_many(slide_requests([str(path) for path in paths]), Extractor.open(backbone, OPTIONS), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("s1-*.h5"))) == 2


def test_an_unexpected_error_fails_its_slide_only(
    tissue_path: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _broken(*_args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(extract_module, "write_features", _broken)
    requests = slide_requests([str(tissue_path), str(tmp_path / "gone.svs")])
    outcomes = extract_many(requests, Extractor.open(backbone, OPTIONS, threads=1), tmp_path)
    assert [outcome.code for outcome in outcomes] == ["internal", "not_found"]


def test_a_slide_that_is_replaced_during_extraction_fails(
    tissue_path: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.tif", save_pyramid(tmp_path / "other.tif", np.full((64, 64, 3), 245, np.uint8))
    path.write_bytes(tissue_path.read_bytes())
    real = extract_module.lay_out

    def _replacing(*args: Any, **options: Any) -> SlideLayout:
        other.replace(path)
        return real(*args, **options)

    monkeypatch.setattr(extract_module, "lay_out", _replacing)
    (outcome,) = extract_many(
        slide_requests([str(path)]), Extractor.open(backbone, OPTIONS, threads=1), tmp_path / "out"
    )
    assert (outcome.status, outcome.code) == ("failed", "slide_changed")
    assert not (tmp_path / "out" / "a.h5").exists()


def test_a_backbone_for_patches_of_any_size_needs_a_patch_size(backbone: Path) -> None:
    with pytest.raises(UsageError, match="--patch-px"):
        Extractor.open(backbone, replace(OPTIONS, patch_px=None))


def test_a_patch_size_that_the_backbone_does_not_take_is_rejected(backbone: Path, tmp_path: Path) -> None:
    card = BackboneCard.model_validate_json((backbone / "backbone.json").read_bytes())
    for patch_px, sides in ((16, ("height", "width")), (None, (16, 16))):
        graph = backbone_graph()
        for axis, side in zip(graph.graph.input[0].type.tensor_type.shape.dim[1:3], sides, strict=True):
            axis.ParseFromString(b"")
            if isinstance(side, int):
                axis.dim_value = side
            else:
                axis.dim_param = side
        onnx.save(graph, tmp_path / "backbone.onnx")
        update = {"patch_px": patch_px, "sha256": sha256_of(tmp_path / "backbone.onnx")}
        (tmp_path / "backbone.json").write_text(card.model_copy(update=update).model_dump_json())
        with pytest.raises(UsageError, match="--patch-px") as caught:
            Extractor.open(tmp_path, replace(OPTIONS, patch_px=24), threads=1)
        assert caught.value.code == "patch_px"
        Extractor.open(tmp_path, OPTIONS, threads=1)


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
