"""Models with a hierarchy of labels go train, export, infer, of either kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hagmil.bundle import open_backbone
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions, predict_one
from hagmil.runtime.results.result import Result
from hagmil.softmax import softmax
from hagmil.trainer.training.loop import train
from tests.integration.published_files import write_colour_backbone
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.trainer.cohorts import FEATURE_DIM, THREE_STAGES, configured
from tests.trainer.hierarchy_cohorts import COARSE, FINE_TO_COARSE, cascade_with_hierarchy, write_hierarchy_cohort

PARTS = {"train": 4, "val": 4, "test": 0}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pyramid(tmp_path_factory.mktemp("slides") / "tissue.tif", tissue_picture(), tile_px=256)


@pytest.mark.parametrize("kind", ["hmil", "hag-mil"])
def test_the_result_holds_both_layers(kind: str, slide: Path, tmp_path: Path) -> None:
    backbone = write_colour_backbone(tmp_path / "backbone", FEATURE_DIM)
    stages = THREE_STAGES if kind == "hag-mil" else [("only", 0.5)]
    tree = write_hierarchy_cohort(tmp_path, parts=PARTS, stages=stages, backbone_sha256=open_backbone(backbone).sha256)
    config = configured(cascade_with_hierarchy(tree) if kind == "hag-mil" else tree, schedule={"max_epochs": 1})
    train(config)
    bundle = export_bundle(config.out, backbone, tmp_path / "bundle").bundle
    assert bundle.manifest.hierarchy == config.label_hierarchy()
    assert bundle.manifest.provenance.training["backbone_proven"] is True

    model = load_model(bundle.path, threads=1)
    result = predict_one(SlideRequest("tissue", str(slide), slide, None), model, tmp_path / "out", PredictOptions())
    assert result.status == "ok", result.message
    _check_layers(result)
    if kind == "hag-mil":
        assert [len(stage.logits) for stage in result.stages] == [2, 2, 4]
        assert result.coarse is not None
        expected = softmax(np.array(result.stages[-2].logits, np.float32))
        assert list(result.coarse.probabilities.values()) == pytest.approx(expected.tolist())
    class_wise = {path.name for path in (tmp_path / "out").glob("heatmap_*.png")}
    assert len(class_wise) == (2 if kind == "hmil" else 0)


def _check_layers(result: Result) -> None:
    assert result.coarse is not None
    assert result.fine is not None
    assert result.coarse_from_fine is not None
    assert tuple(result.coarse.probabilities) == tuple(result.coarse_from_fine) == COARSE
    assert tuple(result.fine.probabilities) == tuple(FINE_TO_COARSE)
    assert result.prediction == result.fine.prediction
    assert result.layers_agree == (FINE_TO_COARSE[result.fine.prediction] == result.coarse.prediction)
    for probabilities in (result.coarse.probabilities, result.fine.probabilities, result.coarse_from_fine):
        assert sum(probabilities.values()) == pytest.approx(1)
