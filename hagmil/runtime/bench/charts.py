"""Bars and lines as SVG text; no library, no outside asset. Colours are the page's ``--series-N``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from hagmil.reports.page import COLOURS, svg

_WIDTH = 980
_ROW, _BAR = 34, 22
_LABEL, _VALUE = 210, 130
_LETTER = 7.0  # about, at 12 px
_PLOT_WIDTH, _PLOT_HEIGHT = 470, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 18, 14, 44


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Args:
        label: at its left.
        value: its length.
        text: at its right.
        series: its colour.
    """

    label: str
    value: float
    text: str
    series: int


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar of several parts.

    Args:
        label: at its left; empty for none.
        parts: length of each part, by its name.
        text: at its right.
    """

    label: str
    parts: Mapping[str, float]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Args:
        name: of the legend.
        points: (x, y), x rising and above 0.
        series: its colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    series: int


def bars_svg(title: str, bars: Sequence[Bar]) -> str:
    """Bars of one scale, one below the other.

    Args:
        title: what they show.
        bars: from top to bottom.
    """
    room = _WIDTH - _LABEL - _VALUE
    most = max((bar.value for bar in bars), default=0.0) or 1.0
    parts = []
    for index, bar in enumerate(bars):
        top, length = index * _ROW, max(2.0, room * bar.value / most)
        parts.append(
            f"<g><title>{escape(bar.label)}: {escape(bar.text)}</title>{_row_label(bar.label, top)}"
            f'<rect x="{_LABEL}" y="{top + 4}" width="{room}" height="{_BAR}" rx="4" class="track"/>'
            f'<rect x="{_LABEL}" y="{top + 4}" width="{length:.1f}" height="{_BAR}" rx="4" '
            f'fill="var(--series-{bar.series % COLOURS})"/>'
            f'<text class="value" x="{_WIDTH}" y="{top + 20}" text-anchor="end">{escape(bar.text)}</text></g>'
        )
    return svg(title, _WIDTH, _ROW * len(bars), parts)


def stacks_svg(title: str, stacks: Sequence[Stack], colours: Mapping[str, int]) -> str:
    """Bars of several parts, on one scale.

    Args:
        title: what they show.
        stacks: from top to bottom.
        colours: the colour of each part, by its name.
    """
    has_labels = any(stack.label for stack in stacks)
    left = _LABEL if has_labels else 0
    room = _WIDTH - left - (_VALUE if any(stack.text for stack in stacks) else 0)
    most = max((sum(stack.parts.values()) for stack in stacks), default=0.0) or 1.0
    height = 46 if not has_labels else _BAR + 6
    drawn = []
    for index, stack in enumerate(stacks):
        x, top = float(left), index * (height + 10)
        total = sum(stack.parts.values()) or 1.0
        for name, value in stack.parts.items():
            width = room * value / most
            drawn.append(_segment(name, value / total, x, top, width, height, colours[name]))
            x += width
        if stack.label:
            drawn.append(_row_label(stack.label, top + (height - _BAR) / 2 - 4))
        if stack.text:
            drawn.append(
                f'<text class="value" x="{_WIDTH}" y="{top + height / 2 + 4:g}" text-anchor="end">'
                f"{escape(stack.text)}</text>"
            )
    return svg(title, _WIDTH, (height + 10) * len(stacks) - 10, drawn)


def lines_svg(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """Lines with a dot a point; x in powers of two or ten, y from 0.

    Args:
        title: what they show.
        x_label: under the axis.
        y_label: beside the axis.
        lines: with at least one point among them.
    """
    xs = sorted({x for line in lines for x, _ in line.points})
    step = _nice_step(max(y for line in lines for _, y in line.points))
    top_value = step * math.ceil(max(y for line in lines for _, y in line.points) / step * 1.02)
    width, height = _PLOT_WIDTH - _LEFT - _RIGHT, _PLOT_HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        span = math.log(xs[-1] / xs[0]) or 1.0
        across = math.log(x / xs[0]) / span if len(xs) > 1 else 0.5
        return _LEFT + 10 + (width - 20) * across, _TOP + height * (1 - y / top_value)

    drawn = [_tick_y(place(xs[0], step * index)[1], step * index) for index in range(round(top_value / step) + 1)]
    drawn += [
        f'<text class="small" x="{place(x, 0)[0]:.1f}" y="{_TOP + height + 17}" text-anchor="middle">{x:,g}</text>'
        for x in xs
    ]
    for line in lines:
        drawn += _line(line, [place(x, y) for x, y in line.points])
    drawn.append(
        f'<text class="axis" x="{_LEFT + width / 2}" y="{_PLOT_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}'
        f'</text><text class="axis" text-anchor="middle" transform="translate(12,{_TOP + height / 2}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return svg(title, _PLOT_WIDTH, _PLOT_HEIGHT, drawn)


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """An HTML list of names and their colours."""
    items = "".join(
        f'<li><span class="key" style="background: var(--series-{series % COLOURS})"></span>{escape(name)}</li>'
        for name, series in entries
    )
    return f'<ul class="legend row">{items}</ul>'


def _row_label(label: str, top: float) -> str:
    return f'<text x="{_LABEL - 12}" y="{top + 20:g}" text-anchor="end">{escape(label)}</text>'


def _segment(name: str, share: float, x: float, top: float, width: float, height: float, series: int) -> str:
    gap = 1.5 if width > 4 else 0.0
    text = f"{share:.0%}"
    for longer in (name, f"{name} {text}"):
        if _LETTER * len(longer) < width - 12:
            text = longer
    fits = _LETTER * len(text) < width - 8
    words = (
        f'<text class="onbar" x="{x + width / 2:.1f}" y="{top + height / 2 + 4:g}" text-anchor="middle">'
        f"{escape(text)}</text>"
        if fits
        else ""
    )
    return (
        f"<g><title>{escape(name)}: {share:.1%}</title>"
        f'<rect x="{x:.1f}" y="{top:g}" width="{max(0.0, width - gap):.1f}" height="{height:g}" rx="3" '
        f'fill="var(--series-{series % COLOURS})"/>{words}</g>'
    )


def _line(line: Line, points: Sequence[tuple[float, float]]) -> list[str]:
    colour = f"var(--series-{line.series % COLOURS})"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>']
    for (x, y), (at, value) in zip(points, line.points, strict=True):
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
            f"<title>{escape(line.name)}, {at:,g}: {value:,.0f}</title></circle>"
        )
    return drawn


def _tick_y(y: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_PLOT_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        f'<text class="small" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>'
    )


def _nice_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that four or so of them reach the top."""
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
