"""Bar charts, stacked bars and line plots of the bench report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hagmil.reports import svg
from hagmil.reports.theme import series_colour

_WIDTH = 980
_ROW_HEIGHT, _BAR_HEIGHT, _STACK_HEIGHT, _STACK_GAP = 34, 22, 46, 10
_LABEL_WIDTH, _VALUE_WIDTH = 210, 130
_LETTER_WIDTH = 7.0  # about, at a font size of 12 px
_PLOT_WIDTH, _PLOT_HEIGHT = 470, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 18, 14, 44
_PLOT_INSET = 10


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Args:
        label: text to its left.
        value: its length.
        text: text to its right.
        series: number of its colour.
    """

    label: str
    value: float
    text: str
    series: int


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar that consists of several parts.

    Args:
        label: text to its left; empty for none.
        parts: length of each part, by its name.
        text: text to its right.
    """

    label: str
    parts: Mapping[str, float]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot.

    Args:
        name: its name in the legend.
        points: (x, y), with x rising and above 0.
        series: number of its colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    series: int


def bars_svg(title: str, bars: Sequence[Bar]) -> str:
    """Draw bars on a common scale.

    Args:
        title: description for screen readers.
        bars: from top to bottom.
    """
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    most = max((bar.value for bar in bars), default=0.0) or 1.0
    drawn = []
    for index, bar in enumerate(bars):
        top, corner = index * _ROW_HEIGHT, (_LABEL_WIDTH, index * _ROW_HEIGHT + 4)
        length = max(2.0, room * bar.value / most)
        parts = (
            _row_label(bar.label, top),
            svg.rect(corner, room, _BAR_HEIGHT, css="track"),
            svg.rect(corner, length, _BAR_HEIGHT, colour=series_colour(bar.series)),
            _value(bar.text, top + 20),
        )
        drawn.append(svg.group(f"{bar.label}: {bar.text}", parts))
    return svg.picture(title, _WIDTH, _ROW_HEIGHT * len(bars), drawn)


def stacks_svg(title: str, stacks: Sequence[Stack], colours: Mapping[str, int]) -> str:
    """Draw stacked bars on a common scale.

    Args:
        title: description for screen readers.
        stacks: from top to bottom.
        colours: number of the colour of each part, by its name.
    """
    has_labels = any(stack.label for stack in stacks)
    left = _LABEL_WIDTH if has_labels else 0
    room = _WIDTH - left - (_VALUE_WIDTH if any(stack.text for stack in stacks) else 0)
    most = max((sum(stack.parts.values()) for stack in stacks), default=0.0) or 1.0
    height = _BAR_HEIGHT + 6 if has_labels else _STACK_HEIGHT
    drawn = []
    for index, stack in enumerate(stacks):
        x, top = float(left), index * (height + _STACK_GAP)
        total = sum(stack.parts.values()) or 1.0
        for name, value in stack.parts.items():
            width = room * value / most
            drawn.append(_segment(name, value / total, (x, top), width, height, colours[name]))
            x += width
        if stack.label:
            drawn.append(_row_label(stack.label, top + (height - _BAR_HEIGHT) / 2 - 4))
        if stack.text:
            drawn.append(_value(stack.text, top + height / 2 + 4))
    return svg.picture(title, _WIDTH, (height + _STACK_GAP) * len(stacks) - _STACK_GAP, drawn)


def lines_svg(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """Plot lines with a dot for each point; x is logarithmic, y starts at 0.

    Args:
        title: description for screen readers.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        lines: with at least one point among them.
    """
    xs = sorted({x for line in lines for x, _ in line.points})
    ticks = svg.round_ticks(max(y for line in lines for _, y in line.points))
    right, bottom = _PLOT_WIDTH - _RIGHT, _PLOT_HEIGHT - _BOTTOM
    axes = svg.Axes(
        left=_LEFT,
        top=_TOP,
        width=right - _LEFT,
        height=bottom - _TOP,
        x=svg.Scale(xs[0], xs[-1], _LEFT + _PLOT_INSET, right - _PLOT_INSET, logarithmic=True),
        y=svg.Scale(0, ticks[-1], bottom, _TOP),
    )
    drawn = [*axes.y_ticks(ticks), *axes.x_ticks(xs, grid=False)]
    for line in lines:
        colour = series_colour(line.series)
        drawn.append(svg.polyline([axes.place(*point) for point in line.points], colour))
        for x, y in line.points:
            drawn.append(svg.circle(axes.place(x, y), 4, colour, title=f"{line.name}, {x:,g}: {y:,.0f}"))
    return svg.picture(title, _PLOT_WIDTH, _PLOT_HEIGHT, [*drawn, *axes.labels(x_label, y_label)])


def _row_label(label: str, top: float) -> str:
    return svg.text((_LABEL_WIDTH - 12, top + 20), label, anchor="end")


def _value(text: str, baseline: float) -> str:
    return svg.text((_WIDTH, baseline), text, anchor="end", css="value")


def _segment(name: str, share: float, corner: svg.Point, width: float, height: float, series: int) -> str:
    """Draw one part of a stack with as much of its label as fits."""
    x, top = corner
    gap = 1.5 if width > 4 else 0.0
    label = f"{share:.0%}"
    for longer in (name, f"{name} {label}"):
        if _LETTER_WIDTH * len(longer) < width - 12:
            label = longer
    parts = [svg.rect(corner, width - gap, height, colour=series_colour(series), radius=3)]
    if _LETTER_WIDTH * len(label) < width - 8:
        parts.append(svg.text((x + width / 2, top + height / 2 + 4), label, anchor="middle", css="onbar"))
    return svg.group(f"{name}: {share:.1%}", parts)
