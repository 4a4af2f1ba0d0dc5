"""An earlier result is used only if the run would give the same one."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import pytest

from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions, predict_one, predict_requests
from hagmil.runtime.results.result import Result
from hagmil.runtime.results.reuse import why_not_reused
from tests.runtime.slide_files import save_pyramid, tissue_picture


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


@pytest.fixture
def request_(tissue_path: Path, tmp_path: Path) -> SlideRequest:
    path = tmp_path / "a.tif"
    path.write_bytes(tissue_path.read_bytes())
    return SlideRequest("a", str(path), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "a"


@pytest.fixture
def result(request_: SlideRequest, model: LoadedModel, folder: Path) -> Result:
    return predict_one(request_, model, folder, PredictOptions())


def test_a_whole_result_of_the_same_slide_and_options_is_used(
    result: Result, request_: SlideRequest, model: LoadedModel, folder: Path
) -> None:
    os.utime(request_.path, ns=(1, 1))  # a copy has another time
    assert why_not_reused(result, folder, request_, model, None) is None


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("status", "rejected", "it is rejected"),
        ("bundle_sha256", "0", "another bundle"),
        ("provider", "CUDAExecutionProvider", "another provider"),
        ("keep", 3, "another number of kept patches"),
        ("sure", False, "it comes from an adaptive run"),
        ("spacing_source", "override", "another spacing"),
        ("slide_sha256", None, "the slide has changed"),
    ],
)
def test_a_result_that_differs_is_not_used(
    field: str, value: object, why: str, result: Result, request_: SlideRequest, model: LoadedModel, folder: Path
) -> None:
    other = result.model_copy(update={field: value})
    assert why in (why_not_reused(other, folder, request_, model, None) or "")


def test_a_result_with_a_fixed_number_of_kept_patches_is_not_used_in_an_adaptive_run(
    result: Result, request_: SlideRequest, model: LoadedModel, folder: Path
) -> None:
    why = why_not_reused(result, folder, request_, model, None, adaptive=True)
    assert why == "it does not come from an adaptive run"
    adaptive = result.model_copy(update={"sure": True})
    assert why_not_reused(adaptive, folder, request_, model, None, adaptive=True) is None


@pytest.mark.parametrize("name", ["attention.h5", "heatmap.png", "regions.geojson"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_result_with_a_damaged_file_is_not_used(
    name: str, damage: str, result: Result, request_: SlideRequest, model: LoadedModel, folder: Path
) -> None:
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 1000 if name == "attention.h5" else 0])
    assert name in (why_not_reused(result, folder, request_, model, None) or "")


def test_a_result_whose_attention_has_other_rows_is_not_used(
    result: Result, request_: SlideRequest, model: LoadedModel, folder: Path
) -> None:
    with h5py.File(folder / "attention.h5", "a") as file:
        kept = file["1um/kept"][:-1]
        del file["1um/kept"]
        file["1um/kept"] = kept
    assert "attention.h5 does not have" in (why_not_reused(result, folder, request_, model, None) or "")


def test_a_replaced_slide_gets_a_new_verdict_with_resume(
    result: Result, request_: SlideRequest, model: LoadedModel, folder: Path
) -> None:
    save_pyramid(request_.path, tissue_picture(700, 600))
    (again,) = predict_requests([request_], model, folder.parent, PredictOptions(resume=True))
    assert (result.status, again.status) == ("ok", "ok")
    assert again.slide_sha256 != result.slide_sha256
    assert again.stages != result.stages
