"""``evaluation.json`` and ``evaluation.html``."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from hagmil.bundle import Hierarchy
from hagmil.errors import DataError
from hagmil.trainer.cascade.keep_table import tabulate_keeps
from hagmil.trainer.cascade.readings import KeepReading, SlideReadings
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluatedStageSpec
from hagmil.trainer.evaluation.report import (
    HTML_NAME,
    JSON_NAME,
    EvaluatedModel,
    EvaluationReport,
    evaluation_schema,
    make_report,
)
from hagmil.trainer.evaluation.report_page import render_html, write_report
from hagmil.trainer.evaluation.report_plots import roc_points
from hagmil.trainer.evaluation.scoring import Scores
from hagmil.trainer.metrics.bootstrap import ScoredSlide
from tests.conftest import REPOSITORY
from tests.export.checkpoints import CERTAINTY

HIERARCHY = Hierarchy(coarse=("benign", "malignant"), fine=("N", "UDH", "DCIS", "IC"), fine_to_coarse=(0, 0, 1, 1))
FINE = EvaluatedModelSpec(
    kind="hmil",
    classes=HIERARCHY.fine,
    hierarchy=HIERARCHY,
    stages=(EvaluatedStageSpec("1um", 1.0, None),),
    feature_dim=8,
    patch_px=64,
    backbone_sha256=None,
)
FLAT = EvaluatedModelSpec("hag-mil", ("a<b>", "c&d"), None, FINE.stages, 8, 64, None)
MODEL = EvaluatedModel(what="bundle", path="some/<bundle>", sha256="ab" * 32, kind="hmil")


def table(slides: int, labels: list[int], classes: int, seed: int) -> tuple[ScoredSlide, ...]:
    generator = np.random.default_rng(seed)
    rows = []
    for place in range(slides):
        weights = generator.random(classes) + 1.5 * (np.arange(classes) == labels[place])
        rows.append(
            ScoredSlide(
                f"slide-{place}", f"case-{place // 2}", labels[place], tuple((weights / weights.sum()).tolist())
            )
        )
    return tuple(rows)


@pytest.fixture
def report() -> EvaluationReport:
    """A report of a model with a hierarchy."""
    labels = [place % 4 for place in range(24)]
    scores = Scores(table(24, labels, 4, 0), table(24, [label // 2 for label in labels], 2, 1))
    return make_report(scores, FINE, MODEL, "test", empty_slides=["white"], resamples=50)


def test_the_published_schema_equals_the_generated_one_and_accepts_a_report(report: EvaluationReport) -> None:
    published = REPOSITORY / "docs" / "schemas" / "evaluation.schema.json"
    assert published.read_text() == evaluation_schema()
    jsonschema.validate(json.loads(report.model_dump_json()), json.loads(published.read_text()))


def test_a_hierarchy_gives_metrics_of_both_layers_and_their_agreement(report: EvaluationReport) -> None:
    assert report.coarse is not None
    assert report.coarse.classes == ("benign", "malignant")
    assert report.agreement is not None
    parents = dict(zip(HIERARCHY.fine, (HIERARCHY.coarse[index] for index in HIERARCHY.fine_to_coarse), strict=True))
    agree = [parents[slide.prediction] == slide.coarse_prediction for slide in report.slides]
    assert report.agreement.value == pytest.approx(np.mean(agree))
    assert all(parents[slide.label] == slide.coarse_label for slide in report.slides)


def test_both_files_are_written_and_the_json_can_be_read(report: EvaluationReport, tmp_path: Path) -> None:
    write_report(tmp_path / "report", report)
    assert EvaluationReport.model_validate_json((tmp_path / "report" / JSON_NAME).read_bytes()) == report
    assert "<!doctype html>" in (tmp_path / "report" / HTML_NAME).read_text()


class Page(HTMLParser):
    """Collects the tags of a page and checks that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.seen.append(tag)
        if tag not in {"meta", "line", "circle", "rect", "polyline"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"line", "circle", "rect", "polyline"}:
            return
        assert self.open.pop() == tag


def test_the_page_loads_nothing_and_contains_three_pictures_for_each_layer(report: EvaluationReport) -> None:
    text = render_html(report)
    page = Page(text)
    assert page.open == []
    assert page.seen.count("svg") == 6
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert not re.search(r"(https?:)?//|url\(|@import", text)
    assert page.seen.count("polyline") == 4 + 2


def test_names_are_escaped() -> None:
    scores = Scores(
        tuple(
            ScoredSlide(f"<script>{place}", f"case-{place}", place % 2, (0.5 + 0.1 * place, 0.5 - 0.1 * place))
            for place in range(4)
        )
    )
    text = render_html(make_report(scores, FLAT, MODEL, "val", resamples=10))
    assert "<script>" not in text
    assert "&lt;script&gt;1" in text
    assert "a&lt;b&gt;" in text
    assert "some/&lt;bundle&gt;" in text
    assert Page(text).open == []


def test_the_page_says_whether_probabilities_are_calibrated(report: EvaluationReport) -> None:
    assert "not calibrated" in render_html(report)
    model = MODEL.model_copy(update={"temperature": 1.5, "coarse_temperature": 0.75})
    text = render_html(report.model_copy(update={"model": model}))
    assert "calibrated with temperature 1.500, coarse 0.750" in text
    assert "sure above" not in text
    certain = MODEL.model_copy(update={"certainty": CERTAINTY})
    assert "call a verdict sure above a margin of 0.250 (a heuristic)" in render_html(
        report.model_copy(update={"model": certain})
    )


def test_undefined_metrics_are_marked_and_not_drawn() -> None:
    scores = Scores(table(4, [0, 0, 0, 0], 2, 0))
    text = render_html(make_report(scores, FLAT, MODEL, "test", resamples=10))
    assert "undefined" in text
    assert "<polyline" not in text


@pytest.mark.parametrize(("sizes", "curves"), [((10, 20), 2), ((10, 80), 4)])
def test_the_page_shows_kept_patches_as_a_table_and_a_curve_for_each_range_of_sizes(
    report: EvaluationReport, sizes: tuple[int, int], curves: int
) -> None:
    readings = [
        SlideReadings(
            f"slide-{size}",
            label,
            size,
            size,
            {
                4: KeepReading(np.float32([0, 1]), None, 30),
                None: KeepReading(np.float32([0, label - 0.5]), None, 5 * size),
            },
        )
        for label, size in enumerate(sizes)
    ]
    table = tabulate_keeps(readings, (4,), ("a<b>", "c&d"), "test")
    text = render_html(report.model_copy(update={"tested": table}))
    page = Page(text)
    assert page.open == []
    assert page.seen.count("svg") == 7
    assert page.seen.count("polyline") == 4 + 2 + curves
    assert "margin, a&lt;b&gt;" in text
    assert "With every tested number of kept patches, some verdicts differ" in text
    assert "keep 4: 50.0% correct, 50.0% agree" in text or "keep 4: 0.0% correct, 0.0% agree" in text


def test_a_temperature_changes_probabilities_but_not_their_order() -> None:
    scores = Scores(table(12, [place % 4 for place in range(12)], 4, 0), table(12, [0, 1] * 6, 2, 1))
    cooler = scores.at(0.5, None)
    assert cooler.coarse == scores.coarse
    for one, other in zip(scores.verdict, cooler.verdict, strict=True):
        assert max(other.probabilities) > max(one.probabilities)
        assert np.argsort(other.probabilities).tolist() == np.argsort(one.probabilities).tolist()
        squares = np.square(one.probabilities)
        assert other.probabilities == pytest.approx(squares / squares.sum())


def test_a_part_without_slides_raises_an_error() -> None:
    with pytest.raises(DataError, match="no slide with tissue in its val part"):
        make_report(Scores(()), FLAT, MODEL, "val")


def test_a_roc_curve_has_corners_at_its_turns_and_a_slope_for_ties() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1])
    positive = np.array([True, True, False, True, False, False])
    points = roc_points(scores, positive)
    third = 1 / 3
    np.testing.assert_allclose(points, [(0, 0), (0, 2 * third), (third, 2 * third), (2 * third, 1), (1, 1)], atol=1e-12)
    area = np.trapezoid([y for _, y in points], [x for x, _ in points])
    assert area == pytest.approx((3 + 3 + 1.5 + 0) / 9 + 0, abs=1e-12)


def test_a_single_class_has_no_roc_curve() -> None:
    assert roc_points(np.array([0.1, 0.2]), np.array([True, True])) == []
