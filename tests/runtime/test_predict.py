"""Every slide gives a result, also if it fails, and every slide of a run gives a row."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import jsonschema
import numpy as np
import pytest

import hagmil
from hagmil._files import sha256_of
from hagmil.errors import BundleError, DataError, EnvironmentLacks, Interrupted, SlideFailed, UsageError
from hagmil.runtime import predict as predict_module
from hagmil.runtime.inference import one_slide, prefetch
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.predict import PredictOptions, predict_many, predict_one, predict_requests, predict_slide
from hagmil.runtime.results import slide_folder
from hagmil.runtime.results.attention import read_attention
from hagmil.runtime.results.result import Result, read_result, result_schema
from tests.conftest import REPOSITORY
from tests.runtime.calibrated import calibrated
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.runtime.small_bundle import write_small_bundle


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


def _request(path: Path, spacing_um: float | None = None) -> SlideRequest:
    return SlideRequest(path.stem, str(path), path, spacing_um)


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_slide_with_a_verdict_has_all_files(tissue_path: Path, model: LoadedModel, tmp_path: Path) -> None:
    result = predict_one(_request(tissue_path), model, tmp_path / "tissue", PredictOptions())
    names = {path.name for path in (tmp_path / "tissue").iterdir()}
    assert names == {"result.json", "attention.h5", "heatmap.png", "regions.geojson"}
    assert result.status == "ok"
    assert result.prediction in result.probabilities
    assert sum(result.probabilities.values()) == pytest.approx(1.0)
    assert result.bundle_sha256 == model.bundle.sha256
    assert (result.spacing_um, result.spacing_source) == (pytest.approx(0.5), "metadata")
    assert {"open", "tissue", "read", "backbone", "models", "total"} <= result.timing_s.keys()
    assert read_result(tmp_path / "tissue") == result


def test_an_additive_model_gives_a_map_of_its_evidence_that_a_later_run_replaces(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    additive = load_model(write_small_bundle(tmp_path / "bundle", readout="additive"), threads=1)
    predict_slide(tissue_path, model=additive, out=tmp_path / "out")
    assert (tmp_path / "out" / "evidence_dark.png").is_file()
    predict_slide(tissue_path, model=model, out=tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "evidence_dark.png").exists()


def test_predict_slide_writes_the_files_of_the_slide_to_out(
    tissue_path: Path, small_bundle: Path, tmp_path: Path
) -> None:
    result = hagmil.predict_slide(tissue_path, model=small_bundle, out=tmp_path / "here", keep=1)
    assert (result.status, [stage.kept for stage in result.stages]) == ("ok", [1, 1, 0])
    assert (tmp_path / "here" / "heatmap.png").is_file()


def test_predict_slide_without_out_writes_nothing_and_holds_arrays(
    tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = predict_slide(str(tissue_path), model=model)
    assert list(tmp_path.iterdir()) == []
    assert [stage.name for stage in result.attention] == ["2um", "1um", "0.5um"]
    for stage, counts in zip(result.attention, result.stages, strict=True):
        assert (stage.coords.dtype, stage.coords.shape) == (np.int64, (counts.encoded, 2))
        assert (stage.attention.dtype, stage.attention.shape) == (np.float32, (counts.encoded,))
        assert len(stage.kept) == counts.kept


@pytest.mark.parametrize("as_text", [True, False])
def test_read_attention_and_read_result_give_what_predict_slide_returned(
    as_text: bool, tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    out = str(tmp_path / "out") if as_text else tmp_path / "out"
    result = predict_slide(tissue_path, model=model, out=out)
    assert read_result(out) == result
    assert read_result(out).attention == ()
    read = read_attention(out)
    assert [stage.name for stage in read] == [stage.name for stage in result.attention]
    for stage, held in zip(read, result.attention, strict=True):
        np.testing.assert_array_equal(stage.coords, held.coords)
        np.testing.assert_array_equal(stage.attention, held.attention)
        np.testing.assert_array_equal(stage.kept, held.kept)
        assert (stage.patch_px, stage.patch_level0) == (held.patch_px, held.patch_level0)
        assert (stage.spacing_um, stage.fine_attention) == (held.spacing_um, None)


def test_read_attention_rejects_other_files(tissue_path: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.h5", tissue_path):
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_attention(path)


def test_results_are_equal_if_their_fields_are(tissue_path: Path, model: LoadedModel) -> None:
    result = predict_slide(tissue_path, model=model)
    assert result == result.with_attention(())
    assert result != result.model_copy(update={"prediction": "other"})


def test_predict_many_writes_files_only_to_out(
    tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    slides = [tissue_path, str(tmp_path / "gone.svs")]
    results = predict_many(slides, model=model)
    assert [(result.status, len(result.attention)) for result in results] == [("ok", 3), ("failed", 0)]
    assert list((tmp_path / "empty").iterdir()) == []
    written = predict_many(slides, model=model, out=str(tmp_path / "out"))
    assert [row["status"] for row in _rows(tmp_path / "out")] == ["ok", "failed"]
    resumed = predict_many(tissue_path, model=model, out=tmp_path / "out", resume=True)
    assert resumed == written[:1]
    np.testing.assert_array_equal(resumed[0].attention[2].coords, written[0].attention[2].coords)


def test_results_in_out_are_replaced_only_on_request(tissue_path: Path, model: LoadedModel, tmp_path: Path) -> None:
    out, slides = tmp_path / "out", [tissue_path, tmp_path / "gone.svs"]
    first = predict_many(slides, model=model, out=out)
    with pytest.raises(UsageError, match=r"--resume .*--overwrite") as caught:
        predict_many(slides, model=model, out=out)
    assert caught.value.code == "exists"
    with pytest.raises(UsageError, match="exclude each other"):
        predict_many(slides, model=model, out=out, resume=True, overwrite=True)
    again = predict_many([tissue_path], model=model, out=out, keep=1, overwrite=True)
    assert (again[0].keep, again[0].slide_id) == (1, "tissue")
    assert read_result(out / "tissue") == again[0]
    assert read_result(out / "gone") == first[1]
    assert [row["slide_id"] for row in _rows(out)] == ["tissue", "gone"]


def test_predict_slide_replaces_a_result_only_with_overwrite(model: LoadedModel, tmp_path: Path) -> None:
    predict_slide(tmp_path / "a.svs", model=model, out=tmp_path / "out")
    with pytest.raises(UsageError, match="overwrite=True") as caught:
        predict_slide(tmp_path / "b.svs", model=model, out=tmp_path / "out")
    assert caught.value.code == "exists"
    assert read_result(tmp_path / "out").slide_id == "a"
    predict_slide(tmp_path / "b.svs", model=model, out=tmp_path / "out", overwrite=True)
    assert read_result(tmp_path / "out").slide_id == "b"


def test_predict_many_resumes_only_with_out(tissue_path: Path, model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="needs out"):
        predict_many([tissue_path], model=model, resume=True)


def test_results_have_their_time_and_the_digest_of_the_slide(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    bare = save_pyramid(tmp_path / "bare.tif", tissue_picture(64, 64), spacing_um=None)
    for path, digest in ((tissue_path, sha256_of(tissue_path)), (bare, sha256_of(bare)), (tmp_path / "gone.svs", None)):
        result = predict_slide(path, model=model)
        assert result.slide_sha256 == digest
        assert result.time_utc is not None
        assert result.time_utc.endswith("Z")
        assert before <= datetime.fromisoformat(result.time_utc) <= datetime.now(UTC)


def test_a_slide_that_is_replaced_during_the_cascade_fails(
    tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.tif", save_pyramid(tmp_path / "other.tif", tissue_picture(700, 600))
    path.write_bytes(tissue_path.read_bytes())
    real = one_slide.run_cascade

    def _replacing(*args: Any, **kwargs: Any) -> tuple[StageOutcome, ...]:
        other.replace(path)
        return real(*args, **kwargs)

    monkeypatch.setattr(one_slide, "run_cascade", _replacing)
    result = predict_slide(path, model=model, out=tmp_path / "out")
    assert (result.status, result.code, result.prediction) == ("failed", "slide_changed", None)
    assert result.slide_sha256 is None
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["result.json"]


def test_predict_slide_rejects_a_spacing_of_zero(tissue_path: Path, model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="above 0"):
        predict_slide(tissue_path, model=model, spacing_um=0)


def test_a_loaded_model_gives_equal_results_in_four_threads(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    other = save_pyramid(tmp_path / "other.tif", tissue_picture(700, 600))
    slides = [tissue_path, other] * 4
    expected = {slide: predict_slide(slide, model=model) for slide in (tissue_path, other)}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda slide: predict_slide(slide, model=model), slides))
    for slide, result in zip(slides, results, strict=True):
        assert (result.status, result.probabilities) == ("ok", expected[slide].probabilities)
        for stage, wanted in zip(result.attention, expected[slide].attention, strict=True):
            np.testing.assert_array_equal(stage.coords, wanted.coords)
            np.testing.assert_array_equal(stage.attention, wanted.attention)
            np.testing.assert_array_equal(stage.kept, wanted.kept)


def test_results_validate_against_the_published_schema(tissue_path: Path, model: LoadedModel, tmp_path: Path) -> None:
    published = (REPOSITORY / "docs" / "schemas" / "result.schema.json").read_text()
    assert published == result_schema()
    for path in (tissue_path, tmp_path / "gone.svs"):
        predict_one(_request(path), model, tmp_path / "out", PredictOptions())
        jsonschema.validate(json.loads((tmp_path / "out" / "result.json").read_text()), json.loads(published))


def test_the_counts_of_each_stage_follow_the_quadtree(tissue_path: Path, model: LoadedModel, tmp_path: Path) -> None:
    result = predict_one(_request(tissue_path), model, tmp_path, PredictOptions(keep=3))
    first, second, third = result.stages
    assert (second.candidates, third.candidates) == (12, 12)
    assert all(stage.encoded == stage.candidates for stage in result.stages)
    assert [stage.kept for stage in result.stages] == [3, 3, 0]
    with h5py.File(tmp_path / "attention.h5") as file:
        assert [len(file[stage.name]["attention"]) for stage in result.stages] == [first.encoded, 12, 12]
        assert list(file["2um/kept"]) == list(np.argsort(-file["2um/attention"][...], kind="stable")[:3])
    squares = json.loads((tmp_path / "regions.geojson").read_text())["features"]
    assert [square["properties"]["stage"] for square in squares] == ["2um"] * 3 + ["1um"] * 3


def test_a_slide_without_spacing_is_rejected_unless_one_is_given(model: LoadedModel, tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "bare.tif", tissue_picture(), spacing_um=None)
    refused = predict_one(_request(path), model, tmp_path / "a", PredictOptions())
    assert (refused.status, refused.code) == ("rejected", "spacing_missing")
    assert "--spacing-um" in (refused.message or "")
    given = predict_one(_request(path, 0.5), model, tmp_path / "b", PredictOptions())
    assert (given.status, given.spacing_source) == ("ok", "override")


def test_a_slightly_too_coarse_slide_gives_a_warning(model: LoadedModel, tmp_path: Path) -> None:
    path = save_pyramid(tmp_path / "coarse.tif", tissue_picture(), spacing_um=0.52)
    result = predict_one(_request(path), model, tmp_path / "out", PredictOptions())
    assert result.status == "ok"
    assert result.warnings[0].startswith("spacing_coarser: ")
    assert "spacing of 0.52 um/px" in result.warnings[0]


def test_an_adaptive_run_reports_its_steps_and_whether_it_is_sure(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    sure, unsure = (
        predict_slide(tissue_path, model=calibrated(model, threshold=threshold), out=tmp_path / name, adaptive=True)
        for name, threshold in (("sure", 0.5), ("unsure", 99.0))
    )
    assert (sure.sure, sure.keep_used, sure.keep, sure.prediction) == (True, 8, None, "dark")
    assert [step.keep for step in sure.adaptive_steps] == [4, 8]
    last, (first, second, third) = sure.adaptive_steps[-1], sure.stages
    assert last.patches_read == first.encoded + 32 + 32
    assert (second.encoded, third.encoded) == (32, 32)
    assert (last.prediction, last.top_prediction) == ("dark", "dark")
    assert last.margin == pytest.approx(third.logits[1] - third.logits[0])
    assert (unsure.sure, unsure.keep_used, len(unsure.adaptive_steps)) == (False, 32, 4)
    assert read_result(tmp_path / "unsure") == unsure
    published = json.loads((REPOSITORY / "docs" / "schemas" / "result.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "sure" / "result.json").read_text()), published)


def test_results_of_other_runs_do_not_say_whether_they_are_sure(tissue_path: Path, model: LoadedModel) -> None:
    result = predict_slide(tissue_path, model=calibrated(model), keep=4)
    assert (result.sure, result.keep_used, result.adaptive_steps) == (None, None, ())


def test_keep_limits_an_adaptive_run_and_resume_compares_it(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    ready = calibrated(model, threshold=99)
    (first,) = predict_many([tissue_path], model=ready, out=tmp_path, adaptive=True, keep=8)
    assert (first.keep, first.keep_used) == (8, 8)
    (same,) = predict_many([tissue_path], model=ready, out=tmp_path, adaptive=True, keep=8, resume=True)
    assert same == first
    (fixed,) = predict_many([tissue_path], model=ready, out=tmp_path, keep=8, resume=True)
    assert (fixed.sure, fixed.keep) == (None, 8)


def test_an_adaptive_run_without_calibration_is_refused_before_a_slide_is_opened(
    model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="hagmil eval --calibrate"):
        predict_slide(tmp_path / "gone.svs", model=model, out=tmp_path / "out", adaptive=True)
    with pytest.raises(UsageError, match="hagmil eval --calibrate"):
        predict_many([tmp_path / "gone.svs"], model=model, out=tmp_path / "out", adaptive=True)
    assert not (tmp_path / "out").exists()


def test_failed_slides_get_a_row_and_do_not_stop_the_run(tissue_path: Path, model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "broken.svs").write_bytes(b"not a slide")
    arguments = [str(tmp_path / "gone.svs"), str(tmp_path / "broken.svs"), str(tissue_path)]
    results = predict_requests(slide_requests(arguments), model, tmp_path / "out", PredictOptions())
    assert [result.status for result in results] == ["failed", "failed", "ok"]
    rows = _rows(tmp_path / "out")
    assert [row["slide"] for row in rows] == arguments
    assert [row["code"] for row in rows] == ["not_found", "unreadable", ""]
    assert all(row["message"] for row in rows[:2])
    assert float(rows[2]["probability"]) == pytest.approx(max(float(rows[2]["p_pale"]), float(rows[2]["p_dark"])))


def test_a_failure_deletes_the_files_of_an_earlier_run(tissue_path: Path, model: LoadedModel, tmp_path: Path) -> None:
    predict_one(_request(tissue_path), model, tmp_path, PredictOptions())
    predict_one(_request(tmp_path / "gone.svs"), model, tmp_path, PredictOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def _count_slides(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = prefetch.prepare_slide

    def _counted(request: SlideRequest, *args: Any) -> one_slide.PreparedSlide:
        seen.append(request.slide_id)
        return real(request, *args)

    monkeypatch.setattr(prefetch, "prepare_slide", _counted)
    return seen


def test_resume_skips_slides_with_a_result(
    tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_pyramid(tmp_path / "other.tif", tissue_picture(700, 600))
    out = tmp_path / "out"
    first = predict_requests(slide_requests([str(tissue_path)]), model, out, PredictOptions())
    seen = _count_slides(monkeypatch)
    both = slide_requests([str(tissue_path), str(other)])
    results = predict_requests(both, model, out, PredictOptions(resume=True))
    assert seen == ["other"]
    assert results[0] == first[0]
    assert len(_rows(out)) == 2
    predict_requests(both, model, out, PredictOptions(resume=True, keep=1))
    assert seen == ["other", "tissue", "other"]


def test_an_interrupted_run_writes_its_results_and_the_error_names_resume(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    def _stop(_result: Result) -> None:
        raise KeyboardInterrupt

    requests = slide_requests([str(tissue_path), str(tmp_path / "never.svs")])
    with pytest.raises(Interrupted, match=r"after [12] of 2 slides.*--resume to continue") as caught:
        predict_requests(requests, model, tmp_path, PredictOptions(), on_result=_stop)
    assert caught.value.exit_code == 6
    assert next(row["status"] for row in _rows(tmp_path)) == "ok"


def _failing(error: Exception) -> object:
    def _cascade(*_args: object, **_kwargs: object) -> tuple[StageOutcome, ...]:
        raise error

    return _cascade


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("a bug"), "internal"),
        (MemoryError(), "out_of_memory"),
        (EnvironmentLacks("no room", code="out_of_memory"), "out_of_memory"),
        (BundleError("not finite", code="not_finite"), "not_finite"),
        (SlideFailed("cut off", code="unreadable"), "unreadable"),
    ],
)
def test_errors_of_one_slide_do_not_stop_the_run(
    error: Exception,
    code: str,
    tissue_path: Path,
    model: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_slide, "run_cascade", _failing(error))
    result = predict_one(_request(tissue_path), model, tmp_path, PredictOptions())
    assert (result.status, result.code) == ("failed", code)
    assert result.message


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), EnvironmentLacks("lost", code="device_lost")])
def test_errors_that_affect_all_slides_stop_the_run(
    error: Exception, tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_slide, "run_cascade", _failing(error))
    with pytest.raises(EnvironmentLacks) as caught:
        predict_requests(slide_requests([str(tissue_path)]), model, tmp_path, PredictOptions())
    assert caught.value.exit_code == 5
    assert not (tmp_path / "tissue" / "result.json").exists()


def test_the_error_of_a_full_disk_names_resume(
    tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slide_folder, "write_attention", _full)
    with pytest.raises(EnvironmentLacks, match=r"no space left.*--resume") as caught:
        predict_requests(slide_requests([str(tissue_path)]), model, tmp_path, PredictOptions())
    assert caught.value.code == "disk_full"


@pytest.mark.parametrize(
    "name",
    [
        b"a\nb.tif",
        b"a\xff.tif",
        b"-a.tif",
        b"...tif",
        b"results.csv.tif",
        b"CON.tif",
        b"=1+1.tif",
        b"a" * 251 + b".tif",
    ],
)
def test_any_file_name_gives_a_result_that_has_the_true_name(
    name: bytes, tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    path = slides / os.fsdecode(name)
    path.write_bytes(tissue_path.read_bytes())
    (result,) = predict_many([path, path], model=model, out=out)
    assert (result.status, result.slide) == ("ok", str(slides / name.decode(errors="backslashreplace")))
    assert {entry.name for entry in out.iterdir()} == {result.slide_id, "results.csv"}
    assert read_result(out / result.slide_id) == result
    assert predict_many([path], model=model, out=out, resume=True) == (result,)
    assert [row["slide_id"] for row in _rows(out)] == [result.slide_id]


def test_a_nul_in_a_path_and_a_spacing_that_is_not_a_number_fail_their_slides_only(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    requests = [
        SlideRequest("a", "a\0b.tif", tmp_path / "a\0b.tif"),
        SlideRequest("b", "b", tissue_path, float("nan")),
        SlideRequest("c", "c", tissue_path),
    ]
    results = predict_requests(requests, model, tmp_path / "out", PredictOptions())
    assert [(result.status, result.code) for result in results] == [
        ("failed", "not_found"),
        ("failed", "usage"),
        ("ok", None),
    ]


@pytest.mark.parametrize("step", ["clear_slide_folder", "write_slide_files", "write_result"])
@pytest.mark.parametrize(
    ("error", "code"), [(PermissionError(13, "denied"), "write_failed"), (ValueError(), "internal")]
)
def test_an_error_in_any_step_fails_its_slide_only(
    step: str,
    error: Exception,
    code: str,
    tissue_path: Path,
    model: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = getattr(predict_module, step)

    def _fails_for_first(folder: Path, *rest: Any) -> None:
        if folder.name == "first":
            raise error
        real(folder, *rest)

    monkeypatch.setattr(predict_module, step, _fails_for_first)
    requests = [SlideRequest("first", "first", tissue_path), SlideRequest("second", "second", tissue_path)]
    results = predict_requests(requests, model, tmp_path, PredictOptions())
    assert [(result.status, result.code) for result in results] == [("failed", code), ("ok", None)]
    assert [row["status"] for row in _rows(tmp_path)] == ["failed", "ok"]


def test_a_file_with_the_name_of_the_folder_of_a_slide_fails_the_slide(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "tissue").write_text("not a folder")
    result, other = predict_many([tissue_path, tmp_path / "gone.svs"], model=model, out=tmp_path)
    assert (result.code, other.code) == ("write_failed", "not_found")
    assert (tmp_path / "tissue").read_text() == "not a folder"


def test_a_stopped_run_keeps_the_row_of_a_result_that_is_still_there(
    tissue_path: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_many([tissue_path], model=model, out=tmp_path)

    def _stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prefetch, "prepare_slide", _stop)
    with pytest.raises(Interrupted):
        predict_many([tissue_path], model=model, out=tmp_path, overwrite=True)
    assert [row["status"] for row in _rows(tmp_path)] == ["ok"]
