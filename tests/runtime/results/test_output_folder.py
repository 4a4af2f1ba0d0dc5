"""The output folder keeps the results of all runs: one row for each slide, and one folder for each id."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.predict import PredictOptions, predict_requests
from hagmil.runtime.results.output_folder import read_results, with_ids_of
from hagmil.runtime.results.result import Result, write_result
from hagmil.runtime.results.results_table import write_table


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


def _result(slide_id: str, slide: str, **fields: object) -> Result:
    return Result.model_validate(
        {
            "slide_id": slide_id,
            "slide": slide,
            "status": "ok",
            "bundle_sha256": "0",
            "versions": {},
            "intended_use": "tests",
        }
        | fields
    )


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_earlier_slides_survive_a_run_over_other_slides(
    tissue_path: Path, model: LoadedModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict_requests(slide_requests([str(tissue_path), "gone.svs"]), model, out, PredictOptions())
    predict_requests(slide_requests(["lost.svs"]), model, out, PredictOptions(resume=True))
    rows = {row["slide_id"]: row for row in _rows(out)}
    assert list(rows) == ["lost", "gone", "tissue"]
    assert [row["status"] for row in rows.values()] == ["failed", "failed", "ok"]
    assert rows["tissue"]["p_dark"] != ""


def test_a_slide_that_is_done_again_has_one_row(model: LoadedModel, tmp_path: Path) -> None:
    for _ in range(2):
        predict_requests(slide_requests(["gone.svs"]), model, tmp_path, PredictOptions(resume=True))
    assert [row["slide_id"] for row in _rows(tmp_path)] == ["gone"]


def test_slides_of_one_name_in_two_runs_get_two_folders_and_keep_their_ids(model: LoadedModel, tmp_path: Path) -> None:
    a, b, out = str(tmp_path / "a" / "s.tif"), str(tmp_path / "b" / "s.tif"), tmp_path / "out"
    for slides in ([a], [b], [b, a]):
        predict_requests(slide_requests(slides), model, out, PredictOptions(resume=True))
    rows = {row["slide"]: row["slide_id"] for row in _rows(out)}
    assert list(rows) == [b, a]
    assert rows[a] == "s"
    assert rows[b].startswith("s-")
    assert {path.parent.name for path in out.glob("*/result.json")} == set(rows.values())


def test_ids_of_a_table_are_kept() -> None:
    request = SlideRequest("s", "b/s.tif", Path("b/s.tif"), id_given=True)
    assert with_ids_of([request], {"s": _result("s", "a/s.tif")}) == (request,)


def test_an_id_of_the_run_is_not_given_to_another_slide() -> None:
    requests = (SlideRequest("t", "a/s.tif", Path("a/s.tif")), SlideRequest("s", "x.tif", Path("x.tif"), id_given=True))
    assert [request.slide_id for request in with_ids_of(requests, {"s": _result("s", "a/s.tif")})] == ["t", "s"]


def test_damaged_results_and_copied_folders_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_result(tmp_path / "a", _result("a", "a.tif"))
    write_result(tmp_path / "copy of a", _result("a", "a.tif"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "result.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert list(read_results(tmp_path)) == ["a"]
    assert len(caplog.records) == 2


def test_the_table_has_the_classes_of_all_bundles(tmp_path: Path) -> None:
    other = _result("b", "b.tif", prediction="x", probabilities={"x": 0.75, "y": 0.25})
    write_table(tmp_path, [_result("a", "a.tif", prediction="y", probabilities={"y": 1.0}), other], ["y", "z"])
    assert [(row["p_y"], row["p_z"], row["p_x"]) for row in _rows(tmp_path)] == [
        ("1.000000", "", ""),
        ("0.250000", "", "0.750000"),
    ]


def test_a_row_is_one_line_without_formulas(tmp_path: Path) -> None:
    texts = ["=1+1", "+a", "-a", "@a", "a\nb\r\0", 'a,"b"', "\t=a"]
    write_table(tmp_path, [_result(str(index), text) for index, text in enumerate(texts)], [])
    assert len((tmp_path / "results.csv").read_text().splitlines()) == len(texts) + 1
    shown = ["'=1+1", "'+a", "'-a", "'@a", r"a\nb\r\x00", 'a,"b"', r"\t=a"]
    assert [row["slide"] for row in _rows(tmp_path)] == shown
