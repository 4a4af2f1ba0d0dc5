"""The shared SVG elements."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from hagmil.reports import svg
from hagmil.reports.page import html_page, legend
from hagmil.reports.theme import SERIES, STYLE, series_colour


def test_scales_map_the_ends_of_their_range_to_the_ends_in_pixels() -> None:
    linear = svg.Scale(0, 2, 100, 0)
    assert [linear(value) for value in (0, 1, 2)] == [100, 50, 0]
    logarithmic = svg.Scale(1, 100, 0, 60, logarithmic=True)
    assert [logarithmic(value) for value in (1, 10, 100)] == pytest.approx([0, 30, 60])


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_scale_of_a_single_value_places_it_in_the_middle(logarithmic: bool) -> None:
    assert svg.Scale(4, 4, 10, 30, logarithmic=logarithmic)(4) == 20


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1.0, [0, 0.5, 1.0, 1.5]),
        (0.9, [0, 0.5, 1.0]),
        (740, [0, 200, 400, 600, 800]),
        (0.002, [0, 0.0005, 0.001, 0.0015, 0.002, 0.0025]),
        (0, [0]),
    ],
)
def test_ticks_are_round_and_start_at_zero(most: float, expected: list[float]) -> None:
    ticks = svg.round_ticks(most)
    assert ticks[0] == 0
    if most:
        assert ticks[-1] >= most
        assert ticks == pytest.approx(expected)


def test_ticks_and_labels_are_placed_around_the_area() -> None:
    axes = svg.Axes(left=50, top=10, width=100, height=80, x=svg.Scale(0, 1, 50, 150), y=svg.Scale(0, 1, 90, 10))
    assert axes.place(1, 1) == (150, 10)
    drawn = "".join([*axes.x_ticks([0.5]), *axes.y_ticks([1000]), *axes.labels("x", "y & z")])
    root = ElementTree.fromstring(svg.picture("a < b", 200, 120, [drawn]))
    assert root.attrib["aria-label"] == "a < b"
    assert [text.text for text in root.findall("text")] == ["0.5", "1,000", "x", "y & z"]
    assert [line.attrib["class"] for line in root.findall("line")] == ["grid", "grid"]
    assert root.findall("text")[0].attrib["x"] == "100"


def test_titles_and_text_are_escaped() -> None:
    elements = [
        svg.text((0, 0), "<b>", title="<i>"),
        svg.circle((1, 1), 2, "red", title="a & b"),
        svg.polyline([(0, 0), (1, 1)], "red", title="<u>"),
        svg.group("<g>", [svg.rect((0, 0), -1, 2, css="cell"), svg.line((0, 0), (1, 2.25), "grid")]),
    ]
    root = ElementTree.fromstring(svg.picture("", 10, 10, elements))
    assert [title.text for title in root.iter("title")] == ["<i>", "a & b", "<u>", "<g>"]
    (rect,) = root.iter("rect")
    assert rect.attrib["width"] == "0"


def test_the_colours_of_series_repeat_and_are_defined_by_the_style() -> None:
    assert series_colour(SERIES + 1) == series_colour(1) == "var(--series-1)"
    assert all(f"--series-{index}:" in STYLE for index in range(SERIES))
    assert f"--series-{SERIES}:" not in STYLE


def test_a_legend_escapes_names_and_keeps_notes() -> None:
    text = legend([("<a>", 0), ("b", 9)], notes=["<i>1</i>", ""], css="legend row")
    assert text.startswith('<ul class="legend row">')
    assert "&lt;a&gt;<i>1</i></li>" in text
    assert "var(--series-1)" in text


def test_a_page_contains_the_theme_and_its_own_style() -> None:
    page = html_page("<title>", "<p>body</p>", "p { margin: 0 }")
    assert "<title>&lt;title&gt;</title>" in page
    assert STYLE in page
    assert "p { margin: 0 }" in page
