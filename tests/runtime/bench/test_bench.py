"""``hagmil bench``: measurements on a small slide and bundle, the report, and the comparison of two reports."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from time import perf_counter
from typing import Any

import jsonschema
import numpy as np
import pytest

from hagmil.bundle import open_bundle, write_manifest
from hagmil.errors import EnvironmentLacks, SlideFailed, SlideRejected, UsageError
from hagmil.runtime.bench import measure, run
from hagmil.runtime.bench.comparison import change_in_words, render_comparison
from hagmil.runtime.bench.figures import Figure, Pair, differences, figures_of, limiting_step, pairs_of, shown
from hagmil.runtime.bench.machine import peak_rss_mb, rss_mb, this_machine
from hagmil.runtime.bench.page import render_html, write_report
from hagmil.runtime.bench.repeats import repeat
from hagmil.runtime.bench.report import (
    HTML_NAME,
    JSON_NAME,
    BenchReport,
    ReadFigures,
    SweepPoint,
    bench_schema,
    read_report,
)
from hagmil.runtime.bench.run import BenchOptions, run_bench
from hagmil.runtime.bench.start_up import InferCall, measure_start_up
from hagmil.runtime.bench.sweep import sweep, sweep_size, thread_counts
from hagmil.runtime.bench.watched_infer import _Watched
from hagmil.runtime.bench.workload import Workload, workload_of
from hagmil.runtime.inference.encode import EncodeOptions, default_batch_size
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.sessions.onnx import available_providers
from hagmil.runtime.slides.open import open_slide
from tests.conftest import REPOSITORY
from tests.runtime.slide_files import save_pyramid, tissue_picture

BATCH = 8
STEPS: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module", autouse=True)
def _short_runs() -> None:
    """Shorten the runs of the backbone from a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "RUN_S", 0.02)
        yield


@pytest.fixture(scope="module")
def report(tissue_path: Path, small_bundle: Path) -> BenchReport:
    """A report of real measurements with one repeat."""
    STEPS.clear()
    options = BenchOptions(
        slide=str(tissue_path),
        bundle=small_bundle,
        providers=("cpu",),
        encode=EncodeOptions(batch_size=BATCH, reader_threads=2),
        threads=1,
        repeats=1,
        patches=100,
        command="hagmil bench <slide>",
    )
    return run_bench(options, lambda *step: STEPS.append(step))


def test_the_published_schema_equals_the_generated_one_and_accepts_a_real_report(report: BenchReport) -> None:
    published = REPOSITORY / "docs" / "schemas" / "bench.schema.json"
    assert published.read_text() == bench_schema()
    jsonschema.validate(json.loads(report.model_dump_json()), json.loads(published.read_text()))


def test_the_documented_keys_are_present(report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    assert {"machine", "versions", "mask", "start_up_s", "peak_rss_mb"} <= found.keys()
    assert {"patches", "seconds", "patches_per_s", "threads"} <= found["read"].keys()
    assert "seconds" in found["mask"]
    assert {"patches_per_s", "batch"} <= found["backbone"]["cpu"].keys()
    assert {"patches_per_s", "seconds", "backbone_share"} <= found["end_to_end"].keys()


def test_the_times_of_the_steps_add_up_to_the_total(report: BenchReport) -> None:
    run = report.end_to_end
    assert sum(run.steps_s.values()) == pytest.approx(run.seconds)
    assert sum(run.shares.values()) == pytest.approx(1)
    assert run.backbone_share == run.shares["backbone"]
    assert 0 < run.backbone_share < 1
    assert run.backbone_waited_s == run.steps_s["waiting for patches"]
    assert {"open", "mask", "backbone", "stage models", "other"} <= run.steps_s.keys()
    assert sum(report.start_up.steps_s.values()) == pytest.approx(report.start_up_s)
    assert all(seconds > 0 for seconds in report.start_up.steps_s.values())


def test_throughput_is_patches_per_second(report: BenchReport) -> None:
    assert report.read.patches_per_s == pytest.approx(report.read.patches / report.read.seconds)
    assert report.read.threads == 2
    backbone, pipeline = report.backbone["cpu"], report.pipeline["cpu"]
    assert backbone.batch == BATCH
    assert backbone.patches % BATCH == 0
    assert backbone.patches_per_s == pytest.approx(backbone.patches / backbone.seconds)
    slower = min(report.read.patches_per_s, backbone.patches_per_s)
    assert pipeline.of_slower == pytest.approx(pipeline.patches_per_s / slower)
    assert 0 < pipeline.backbone_share < 1
    assert pipeline.readers_waited_s is not None
    assert pipeline.readers_waited_s >= 0


def test_the_run_encodes_the_same_patches_as_infer(report: BenchReport, tissue_path: Path, small_bundle: Path) -> None:
    stages = report.end_to_end.stages
    assert [stage.name for stage in stages] == ["2um", "1um", "0.5um"]
    assert [stage.encoded for stage in stages][1:] == [8, 8]  # 2 kept, 4 children each
    assert report.end_to_end.patches == sum(stage.encoded for stage in stages)
    assert [(each.stage, each.patches) for each in report.models["cpu"]] == [(s.name, s.encoded) for s in stages]
    assert report.slide.name == tissue_path.name
    assert not report.slide.phantom
    assert report.bundle.name == small_bundle.name
    assert not report.bundle.builtin


def test_memory_is_that_of_the_infer_process(report: BenchReport) -> None:
    assert report.peak_rss_mb == report.memory.peak_rss_mb
    assert report.memory.above_models_mb == pytest.approx(report.peak_rss_mb - report.memory.with_models_mb)
    assert 20 < report.peak_rss_mb < 2000


def test_progress_reaches_the_end_of_every_step(report: BenchReport) -> None:
    assert report.command
    last = {what: (done, total) for what, done, total in STEPS}
    assert last.keys() == {"slide", "mask and reading", "models on cpu", "start-up"}
    assert all(done == total for done, total in last.values())


def test_both_files_are_written_and_the_json_can_be_read(report: BenchReport, tmp_path: Path) -> None:
    write_report(tmp_path / "report", report)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [HTML_NAME, JSON_NAME]
    assert read_report(tmp_path / "report") == report
    assert read_report(tmp_path / "report" / JSON_NAME) == report


def test_reports_with_former_step_names_can_be_read(report: BenchReport, tmp_path: Path) -> None:
    former = report.model_dump_json().replace('"stage models":', '"level models":')
    assert "level models" in former
    (tmp_path / JSON_NAME).write_text(former)
    assert read_report(tmp_path) == report


def test_reading_a_file_that_is_not_a_report_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.json.*cannot be read"):
        read_report(tmp_path / "gone.json")
    (tmp_path / "other.json").write_text('{"format": "hagmil-result"}')
    with pytest.raises(UsageError, match=r"other\.json.*is not a report of hagmil bench"):
        read_report(tmp_path / "other.json")


class Page(HTMLParser):
    """Collects the tags of a page and checks that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert not re.search(r"https?:|url\(|@import|\b(src|href)=", text)
    return page


def test_the_page_loads_nothing_and_contains_its_pictures(report: BenchReport) -> None:
    page = _assert_self_contained(render_html(report))
    assert page.seen.count("svg") == 4
    assert "polyline" not in page.seen


def test_the_page_escapes_names_and_messages(report: BenchReport) -> None:
    strange = report.model_copy(
        update={
            "slide": report.slide.model_copy(update={"name": "<script>.tif"}),
            "skipped": {"cuda": "<b>no device</b>"},
        }
    )
    text = render_html(strange)
    assert "<script>" not in text
    assert "&lt;script&gt;.tif" in text
    assert "&lt;b&gt;no device" in text
    _assert_self_contained(text)


def test_a_sweep_is_drawn_with_one_line_for_each_provider(report: BenchReport) -> None:
    points = tuple(
        SweepPoint(
            what="backbone_batch",
            provider=provider,
            series="tiny",
            value=batch,
            patches_per_s=9.0 * batch,
            repeats_s=(1.0,),
        )
        for provider in ("cpu", "cuda")
        for batch in (1, 4, 16)
    )
    text = render_html(report.model_copy(update={"sweep": points}))
    page = _assert_self_contained(text)
    assert page.seen.count("polyline") == 2
    assert page.seen.count("circle") == 6
    assert "tiny, cuda" in text


def test_a_sweep_of_one_value_is_drawn_as_a_single_dot(report: BenchReport) -> None:
    point = SweepPoint(
        what="read_threads", provider=None, series="reading", value=1, patches_per_s=0.002, repeats_s=(1.0,)
    )
    assert Page(render_html(report.model_copy(update={"sweep": (point,)}))).seen.count("circle") == 1


def test_the_sweep_measures_every_setting(tissue_path: Path, small_bundle: Path) -> None:
    model = load_model(small_bundle, threads=1)
    how = measure.measuring(EncodeOptions(batch_size=4, reader_threads=1), model, 1)
    with open_slide(tissue_path) as slide:
        workload = workload_of(slide, model.bundle.manifest, 20)
        assert len(workload.coords) == 20
        patches = measure.resident_patches(workload, how)
        points = list(sweep(workload, {"cpu": model}, patches, how))
        assert len(points) == sweep_size({"cpu": model}, patches)
    tried = {what: [p.value for p in points if p.what == what] for what in dict.fromkeys(p.what for p in points)}
    assert tried == {
        "read_threads": list(thread_counts()),
        "backbone_batch": [1, 4, 16, 64, 256],
        "model_patches": [100, 1_000, 10_000],
        "backbone_threads": list(thread_counts()),
    }
    assert all(point.patches_per_s > 0 for point in points)


def test_reading_is_measured_with_the_readers_of_each_provider(
    monkeypatch: pytest.MonkeyPatch, tissue_path: Path, small_bundle: Path
) -> None:
    readers = {"cpu": 1, "device": 3}
    models = {name: load_model(small_bundle, threads=1) for name in readers}
    loaded = {name: run._Loaded(model, 0.0) for name, model in models.items()}
    measured: list[int] = []
    calls: list[InferCall] = []

    def _measuring(encode: EncodeOptions, model: LoadedModel, repeats: int) -> measure.Measuring:
        name = next(name for name in models if models[name] is model)
        return measure.measuring(replace(encode, reader_threads=readers[name]), model, repeats)

    def _reading(workload: Workload, how: measure.Measuring) -> ReadFigures:
        measured.append(how.readers)
        return measure.measure_reading(workload, how).model_copy(update={"patches_per_s": 100.0 * how.readers})

    def _start_up(call: InferCall, repeats: int) -> Any:
        calls.append(call)
        return measure_start_up(replace(call, provider="cpu"), repeats)

    for name, stand_in in (("_load", lambda _: (loaded, {})), ("measuring", _measuring)):
        monkeypatch.setattr(run, name, stand_in)
    monkeypatch.setattr(run, "measure_reading", _reading)
    monkeypatch.setattr(run, "measure_start_up", _start_up)
    options = BenchOptions(slide=str(tissue_path), bundle=small_bundle, threads=1, repeats=1, patches=50)
    report = run_bench(options, lambda *_: None)
    assert measured == [1, 3]
    fastest = max(report.backbone, key=lambda name: report.backbone[name].patches_per_s)
    assert (calls[0].provider, calls[0].readers) == (fastest, readers[fastest])
    assert report.read.threads == readers[fastest]
    assert {name: each.reading_per_s for name, each in report.pipeline.items()} == {"cpu": 100, "device": 300}
    assert report.settings.readers is None
    assert "reader threads chosen for the provider" in render_html(report)


def test_resident_patches_are_those_of_the_workload(tissue_path: Path, small_bundle: Path) -> None:
    model = load_model(small_bundle, threads=1)
    with open_slide(tissue_path) as slide:
        workload = workload_of(slide, model.bundle.manifest, 30)
        how = measure.measuring(EncodeOptions(batch_size=7, reader_threads=2), model, 1)
        patches = measure.resident_patches(workload, how)
        for row, (x, y) in enumerate(workload.coords.tolist()):
            assert np.array_equal(patches[row], slide.read_region(0, x, y, 16, 16))


def test_without_a_slide_a_phantom_is_made_and_removed(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        options = BenchOptions(
            bundle=small_bundle,
            encode=EncodeOptions(batch_size=None),
            threads=1,
            repeats=1,
            patches=64,
            phantom_px=1024,
        )
        report = run_bench(options, lambda *_: None)
    assert report.slide.phantom
    assert report.slide.width == 1024
    assert report.slide.spacing_um == pytest.approx(0.5)
    assert report.read.patches == 64
    assert report.settings.batch is None
    assert report.backbone["cpu"].batch == default_batch_size(load_model(small_bundle, threads=1).backbone, 16)
    assert list(tmp_path.iterdir()) == []
    if "cuda" not in available_providers():
        assert "cuda" in report.skipped


def test_an_unsuitable_slide_raises_an_error_with_the_reason(small_bundle: Path, tmp_path: Path) -> None:
    def _bench(slide: Path, **options: float) -> None:
        run_bench(BenchOptions(slide=str(slide), bundle=small_bundle, providers=("cpu",), **options), lambda *_: None)

    with pytest.raises(SlideFailed):
        _bench(tmp_path / "gone.svs")
    plain = save_pyramid(tmp_path / "plain.tif", tissue_picture(), spacing_um=None, tile_px=256)
    with pytest.raises(SlideRejected, match="--spacing-um"):
        _bench(plain)
    white = save_pyramid(tmp_path / "white.tif", np.full((600, 600, 3), 245, np.uint8), tile_px=256)
    with pytest.raises(SlideRejected, match="no tissue"):
        _bench(white)
    shutil.copy(white, tmp_path / "two.tif")
    with pytest.raises(UsageError, match="takes one slide"):
        _bench(tmp_path)


def test_a_given_provider_that_is_absent_raises_an_error(small_bundle: Path, tissue_path: Path) -> None:
    if "cuda" in available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentLacks):
        run_bench(BenchOptions(slide=str(tissue_path), bundle=small_bundle, providers=("cuda",)), lambda *_: None)


def test_a_failed_start_reports_the_output_of_the_process(small_bundle: Path, tmp_path: Path) -> None:
    request = SlideRequest("gone", "gone.svs", tmp_path / "gone.svs")
    with pytest.raises(EnvironmentLacks, match=r"exit code 3: .*does not exist") as caught:
        measure_start_up(InferCall(request, small_bundle, "cpu", 8, 1, 1, None), 1)
    assert caught.value.code == "start_up_failed"


def test_a_watched_session_behaves_like_the_session_and_records_its_first_run(small_bundle: Path) -> None:
    backbone = load_model(small_bundle, threads=1).backbone
    noted: list[str] = []
    watched = _Watched(backbone, noted.append)
    assert watched.provider == backbone.provider
    assert watched.input_shapes == backbone.input_shapes
    assert noted == []
    patches = np.full((2, 16, 16, 3), 51, np.uint8)
    assert watched.run({"patches": patches})["features"] == pytest.approx(0.2)
    assert noted == ["first_patch"]


def test_the_run_with_the_median_time_counts_and_the_warm_up_does_not() -> None:
    values = iter([9, 1, 2, 3])
    timed = repeat(lambda: next(values), 3)
    assert timed.found in (1, 2, 3)
    assert len(timed.repeats_s) == 3
    assert timed.seconds == sorted(timed.repeats_s)[1]
    assert next(values, None) is None


def test_long_work_runs_once() -> None:
    calls: list[float] = []
    timed = repeat(lambda: calls.append(perf_counter()), 5, long_s=0.0)
    assert len(calls) == len(timed.repeats_s) == 1


def test_comparing_a_report_with_itself_gives_no_difference(report: BenchReport) -> None:
    assert differences(report, report) == ()
    pairs = pairs_of(report, report)
    assert [pair.first for pair in pairs] == list(figures_of(report))
    assert {change_in_words(pair)[1] for pair in pairs} == {"neutral"}
    _assert_self_contained(render_comparison(report, report, ("one.json", "two.json")))


def test_a_comparison_gives_the_factor_of_gain_or_loss(report: BenchReport) -> None:
    read = report.read.model_copy(
        update={"seconds": report.read.seconds / 2, "repeats_s": tuple(s / 2 for s in report.read.repeats_s)}
    )
    faster = report.model_copy(update={"read": read})
    names = {(pair.any.group, pair.any.name): change_in_words(pair) for pair in pairs_of(report, faster)}
    assert names[("reading alone", "patches")] == ("2.00 times better", "better")
    names = {(pair.any.group, pair.any.name): change_in_words(pair) for pair in pairs_of(faster, report)}
    assert names[("reading alone", "patches")] == ("2.00 times worse", "worse")
    text = render_comparison(report, faster, ("<a>", "b"))
    assert "2.00 times better" in text
    assert "&lt;a&gt;" in text


def test_figures_with_overlapping_ranges_are_equal() -> None:
    one = Figure("a", "b", "s", 1.0, "lower", 0.9, 1.3)
    other = Figure("a", "b", "s", 1.2, "lower", 1.1, 1.4)
    assert change_in_words(Pair(one, other)) == ("similar", "neutral")
    assert change_in_words(Pair(one, Figure("a", "b", "s", 1.5, "lower", 1.4, 1.6))) == ("1.50 times worse", "worse")


def test_single_runs_that_differ_by_less_than_five_percent_are_equal() -> None:
    one, other = (Figure("memory", "peak", "MB", value, "lower", value, value) for value in (200.0, 208.0))
    assert change_in_words(Pair(one, other)) == ("similar", "neutral")


def test_figures_of_a_provider_in_one_report_only_have_no_counterpart(report: BenchReport) -> None:
    both = report.model_copy(update={"backbone": {**report.backbone, "cuda": report.backbone["cpu"]}})
    alone = [pair for pair in pairs_of(report, both) if pair.first is None]
    assert {pair.any.group for pair in alone} == {"backbone alone, cuda"}
    assert {change_in_words(pair) for pair in alone} == {("", "neutral")}
    assert ">-<" in render_comparison(report, both, ("a", "b"))


def test_differences_in_slide_and_settings_are_listed(report: BenchReport) -> None:
    other = report.model_copy(
        update={
            "slide": report.slide.model_copy(update={"sha256": "f" * 64, "name": "other.svs"}),
            "settings": report.settings.model_copy(update={"batch": 99}),
        }
    )
    text = " / ".join(differences(report, other))
    assert "other.svs (ffffffffffff)" in text
    assert f"batch: {BATCH} and 99" in text


@pytest.mark.parametrize(
    ("reading", "shares", "of_slower", "sentences"),
    [
        (
            0.25,
            {"backbone": 0.2, "write": 0.67, "mask": 0.13},
            0.942,
            'the longest step is "write": 67% of 2.50 s. Of reading and the backbone, reading is slower: the backbone '
            "alone is 4.0 times as fast. Both together reach 94% of its throughput.",
        ),
        (
            25,
            {"backbone": 0.9, "write": 0.1},
            1.16,
            'the longest step is "backbone": 90% of 2.50 s. Of reading and the backbone, the backbone is slower: '
            "reading alone is 25 times as fast. Both together are as fast as it alone.",
        ),
    ],
)
def test_the_lead_follows_from_the_figures(
    reading: float, shares: dict[str, float], of_slower: float, sentences: str, report: BenchReport
) -> None:
    rate = report.backbone["cpu"].patches_per_s * reading
    pipeline = report.pipeline["cpu"].model_copy(update={"reading_per_s": rate, "of_slower": of_slower})
    run = report.end_to_end.model_copy(update={"shares": shares, "seconds": 2.5})
    changed = report.model_copy(update={"pipeline": {"cpu": pipeline}, "end_to_end": run})
    assert limiting_step(changed) == f"From slide to results on cpu, {sentences}"


def test_providers_that_cannot_run_a_quantised_bundle_are_skipped(small_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(small_bundle, tmp_path / "int8")
    manifest = open_bundle(small_bundle).manifest.model_copy(update={"precision": "int8"})
    write_manifest(tmp_path / "int8", manifest)
    loaded, skipped = run._load(BenchOptions(slide=None, bundle=tmp_path / "int8", threads=1))
    assert "cpu" in loaded
    assert "is quantised for CPUs" in skipped["tensorrt"]
    with pytest.raises(UsageError, match="is quantised for CPUs"):
        run._load(BenchOptions(slide=None, bundle=tmp_path / "int8", providers=("tensorrt",)))


def test_numbers_have_three_digits_and_their_unit() -> None:
    assert shown(0.0421, "s") == "42.1 ms"
    assert shown(1.234, "s") == "1.23 s"
    assert shown(15112.4, "patches/s") == "15,112 patches/s"
    assert shown(0.9512, "share") == "95.1%"


def test_the_machine_has_a_description() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.cpu
    assert 0 < rss_mb() <= peak_rss_mb()
