"""A published checkpoint reproduces the published outputs after import and export, and in inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.bundle import BackboneCard, open_backbone, open_bundle
from hagmil.errors import BundleError, UsageError
from hagmil.export.model_card import MODEL_CARD_NAME
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions, predict_one
from hagmil.runtime.results.class_heatmaps import class_heatmap_name
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from hagmil.trainer.published.defaults import BRACS_HIERARCHY
from hagmil.trainer.published.import_checkpoint import ImportOptions, import_checkpoint
from tests.integration.published_files import (
    HMIL_SALT,
    LEVELS,
    write_colour_backbone,
    write_published_hag_mil,
    write_published_hmil,
)
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.trainer.published_models import PublishedReference, features, load_reference

pytestmark = pytest.mark.timeout(900)  # a full-size cascade is exported


@pytest.fixture(scope="module")
def official(data_folder: Path) -> PublishedReference:
    return load_reference(data_folder / "conformance")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pyramid(tmp_path_factory.mktemp("slides") / "tissue.tif", tissue_picture(), tile_px=256)


@pytest.fixture(scope="module")
def hmil(official: PublishedReference, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("hmil")
    options = ImportOptions(spacing_um=[0.5], patch_px=32)
    import_checkpoint(write_published_hmil(folder / "best.pth", official), "hmil", folder / "checkpoint", options)
    export_bundle(folder / "checkpoint", write_colour_backbone(folder / "backbone", 1024), folder / "bundle")
    return load_model(folder / "bundle", threads=1)


@pytest.mark.parametrize("patches", [5, 300, 1500])
def test_an_imported_and_exported_hmil_reproduces_the_published_outputs(
    official: PublishedReference, hmil: LoadedModel, patches: int
) -> None:
    outputs = hmil.stages[0].run({"features": features(patches, 1024, HMIL_SALT).numpy()})
    for name, tolerance in (
        ("coarse_attention", 1e-5),
        ("fine_attention", 1e-5),
        ("coarse_logits", 2e-4),
        ("fine_logits", 2e-4),
    ):
        _assert_near(outputs[name], official.outputs[f"hmil_{patches}_{name}"], tolerance)


def test_manifest_and_card_give_hierarchy_and_origin_and_an_unverified_backbone(hmil: LoadedModel) -> None:
    manifest = hmil.bundle.manifest
    assert (manifest.kind, manifest.classes) == ("hmil", tuple(BRACS_HIERARCHY))
    assert manifest.hierarchy is not None
    assert manifest.hierarchy.coarse == ("benign", "atypical", "malignant")
    assert [(stage.name, stage.keep) for stage in manifest.stages] == [("0.5um", None)]
    assert manifest.provenance.training["backbone_proven"] is False
    assert manifest.provenance.training["source_name"] == "best.pth"
    card = hmil.bundle.file(MODEL_CARD_NAME).read_text()
    assert "It is not verified that the models were trained on features of this encoder" in card
    assert "| DCIS | malignant |" in card


def test_a_slide_has_predictions_of_both_layers_and_a_heatmap_of_each(
    hmil: LoadedModel, slide: Path, tmp_path: Path
) -> None:
    result = predict_one(SlideRequest("tissue", str(slide), slide, None), hmil, tmp_path, PredictOptions())
    assert result.status == "ok", result.message
    assert result.coarse is not None
    assert result.fine is not None
    assert (result.prediction, result.probabilities) == (result.fine.prediction, result.fine.probabilities)
    assert result.layers_agree == (BRACS_HIERARCHY[result.fine.prediction] == result.coarse.prediction)
    assert result.coarse_from_fine is not None
    for coarse, value in result.coarse_from_fine.items():
        parts = [result.probabilities[fine] for fine, parent in BRACS_HIERARCHY.items() if parent == coarse]
        assert value == pytest.approx(sum(parts))
    assert {path.name for path in tmp_path.iterdir()} == {
        "result.json", "attention.h5", "regions.geojson", "heatmap.png",
        class_heatmap_name("fine", result.fine.prediction), class_heatmap_name("coarse", result.coarse.prediction),
    }  # fmt: skip
    with h5py.File(tmp_path / "attention.h5") as file:
        group = file["0.5um"]
        rows = len(group["coords"])
        assert (group["coarse_attention"].shape, group["fine_attention"].shape) == ((3, rows), (7, rows))
        fine = group["fine_attention"][tuple(BRACS_HIERARCHY).index(result.fine.prediction)]
        np.testing.assert_array_equal(group["attention"][...], fine)
        assert list(group["coarse_attention"].attrs["classes"]) == ["benign", "atypical", "malignant"]
        np.testing.assert_allclose(group["fine_attention"][...].sum(axis=1), 1, rtol=0, atol=1e-5)


def test_an_imported_and_exported_cascade_reproduces_the_published_outputs(
    official: PublishedReference, slide: Path, tmp_path: Path
) -> None:
    backbone = write_colour_backbone(tmp_path / "backbone", 64)
    options = ImportOptions(classes=["a", "b", "c"], spacing_um=[0.5], patch_px=16, keep=20)
    published = write_published_hag_mil(tmp_path / "last.ckpt", official)
    card = import_checkpoint(published, "hag-mil", tmp_path / "checkpoint", options)
    assert [(stage.name, stage.keep) for stage in card.stages] == [("2um", 20), ("1um", 20), ("0.5um", None)]
    export_bundle(tmp_path / "checkpoint", backbone, tmp_path / "bundle")
    model = load_model(tmp_path / "bundle", threads=1)
    rows = np.arange(37)
    for level, session in zip(LEVELS, model.stages, strict=True):
        if level < 2:
            rows = official.outputs[f"cascade_level{level}_index"]
        bag = features(37 * 4 ** (2 - level), 64, f"hagmil-cascade-{level}").numpy()[rows]
        outputs = session.run({"features": bag})
        for name in ("logits", "attention"):
            _assert_near(outputs[name], official.outputs[f"cascade_level{level}_{name}"], 2e-4)
    result = predict_one(SlideRequest("tissue", str(slide), slide, None), model, tmp_path / "out", PredictOptions())
    assert (result.status, len(result.stages), result.coarse) == ("ok", 3, None)


def test_a_backbone_given_at_import_must_be_used_at_export(official: PublishedReference, tmp_path: Path) -> None:
    published = write_published_hmil(tmp_path / "best.pth", official)
    backbone = write_colour_backbone(tmp_path / "backbone", 1024)
    imported_backbone = open_backbone(backbone)
    import_checkpoint(published, "hmil", tmp_path / "checkpoint", ImportOptions(backbone=imported_backbone))
    recorded = load_checkpoint(tmp_path / "checkpoint").card.backbone
    assert recorded is not None
    assert (recorded.sha256, recorded.proven) == (imported_backbone.sha256, False)
    other = write_colour_backbone(tmp_path / "other", 1024)
    _edit_card(other, name="other", sha256=_change(other))
    with pytest.raises(BundleError, match='backbone "colour"'):
        export_bundle(tmp_path / "checkpoint", other, tmp_path / "bundle")
    report = export_bundle(tmp_path / "checkpoint", backbone, tmp_path / "bundle")
    assert open_bundle(report.bundle.path).manifest.provenance.training["backbone_proven"] is False


def test_a_backbone_with_another_number_of_features_is_refused_at_import(
    official: PublishedReference, tmp_path: Path
) -> None:
    published = write_published_hmil(tmp_path / "best.pth", official)
    short = open_backbone(write_colour_backbone(tmp_path / "short", 64))
    with pytest.raises(BundleError, match='takes 1024 features; backbone "colour" gives 64'):
        import_checkpoint(published, "hmil", tmp_path / "checkpoint", ImportOptions(backbone=short))
    assert not (tmp_path / "checkpoint").exists()


def test_an_existing_checkpoint_is_replaced_only_with_overwrite(official: PublishedReference, tmp_path: Path) -> None:
    published = write_published_hmil(tmp_path / "best.pth", official)
    import_checkpoint(published, "hmil", tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="overwrite"):
        import_checkpoint(published, "hmil", tmp_path / "checkpoint")
    import_checkpoint(published, "hmil", tmp_path / "checkpoint", overwrite=True)


def _assert_near(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=tolerance)


def _change(backbone: Path) -> str:
    import onnx

    from hagmil._files import sha256_of

    model = onnx.load(backbone / "backbone.onnx")
    model.doc_string = "another"
    onnx.save(model, backbone / "backbone.onnx")
    return sha256_of(backbone / "backbone.onnx")


def _edit_card(backbone: Path, **changes: str) -> None:
    card: BackboneCard = BackboneCard.model_validate_json((backbone / "backbone.json").read_text())
    (backbone / "backbone.json").write_text(card.model_copy(update=changes).model_dump_json())
