"""SVG elements as text: shapes, labels, and the axes of a plot.

Coordinates are CSS pixels from the top left. Text content and titles are escaped here. CSS classes are those of
:mod:`hagmil.reports.theme` or of the page's own style.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

_TICK_GAP = 8
_TICK_DROP = 16
_LABEL_DROP = 38
_LABEL_X = 13
_BASELINE = 4
"""Distance from the middle of a line of text down to its baseline."""


def picture(title: str, width: float, height: float, elements: Iterable[str]) -> str:
    """Return an ``svg`` element.

    Args:
        title: description for screen readers.
        width: in CSS pixels.
        height: in CSS pixels.
        elements: its content, drawn in this order.
    """
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}">{"".join(elements)}</svg>'
    )


def group(title: str, elements: Iterable[str]) -> str:
    """Return elements that share a tooltip."""
    return f"<g>{_title(title)}{''.join(elements)}</g>"


def text(
    place: Point, content: str, *, anchor: Anchor = "start", css: str = "", turn: float = 0, title: str = ""
) -> str:
    """Return a line of text.

    Args:
        place: the anchor's position on the baseline.
        content: the text.
        anchor: the part of the text that is at ``place``.
        css: classes.
        turn: rotation about ``place`` in degrees, clockwise.
        title: tooltip; empty for none.
    """
    x, y = place
    position = f'transform="translate({_px(x)},{_px(y)}) rotate({turn:g})"' if turn else f'x="{_px(x)}" y="{_px(y)}"'
    classes = f'class="{css}" ' if css else ""
    return f'<text {classes}{position} text-anchor="{anchor}">{_title(title)}{escape(content)}</text>'


def line(start: Point, end: Point, css: str) -> str:
    """Return a straight line; the class gives its stroke."""
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{css}" x1="{_px(x1)}" y1="{_px(y1)}" x2="{_px(x2)}" y2="{_px(y2)}"/>'


def polyline(points: Sequence[Point], colour: str, *, dashes: str = "", title: str = "") -> str:
    """Return the curve of a series through some points.

    Args:
        points: at least one.
        colour: of the stroke.
        dashes: ``stroke-dasharray``; empty for a solid line.
        title: tooltip; empty for none.
    """
    path = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{dash}>{_title(title)}</polyline>'
    )


def circle(centre: Point, radius: float, colour: str, *, opacity: float = 1.0, title: str = "") -> str:
    """Return a filled circle with an optional tooltip."""
    x, y = centre
    return (
        f'<circle cx="{_px(x)}" cy="{_px(y)}" r="{_px(radius)}" fill="{colour}"{_opacity(opacity)}>'
        f"{_title(title)}</circle>"
    )


def rect(
    corner: Point,
    width: float,
    height: float,
    *,
    colour: str = "",
    css: str = "",
    radius: float = 4,
    opacity: float = 1,
) -> str:
    """Return a rectangle with rounded corners.

    Args:
        corner: top left.
        width: in CSS pixels; below 0 counts as 0.
        height: in CSS pixels.
        colour: of its area; empty where the class gives it.
        css: classes.
        radius: of the corners.
        opacity: of its area.
    """
    x, y = corner
    fill = f' fill="{colour}"' if colour else ""
    classes = f' class="{css}"' if css else ""
    return (
        f'<rect x="{_px(x)}" y="{_px(y)}" width="{_px(max(0.0, width))}" height="{_px(height)}" rx="{radius:g}"'
        f"{classes}{fill}{_opacity(opacity)}/>"
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to pixels, linearly or by their logarithm.

    Args:
        low: the value at ``start``.
        high: the value at ``end``; where it equals ``low``, values are placed in the middle.
        start: in CSS pixels.
        end: in CSS pixels.
        logarithmic: whether equal ratios have equal lengths; values are above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value in CSS pixels."""
        if self.low == self.high:
            return (self.start + self.end) / 2
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True, slots=True)
class Axes:
    """The area of a plot with its two scales.

    Args:
        left: left edge of the area; the tick labels of y are further left.
        top: upper edge.
        width: of the area.
        height: of the area; the tick labels of x are below it.
        x: scale across.
        y: scale up.
    """

    left: float
    top: float
    width: float
    height: float
    x: Scale
    y: Scale

    def place(self, x: float, y: float) -> Point:
        """Return the position of a point of data."""
        return self.x(x), self.y(y)

    def line(self, start: Point, end: Point, css: str) -> str:
        """Return a straight line between two points of data."""
        return line(self.place(*start), self.place(*end), css)

    def x_ticks(self, values: Iterable[float], *, grid: bool = True) -> list[str]:
        """Return labels below the area, with grid lines if wanted."""
        drawn = []
        for value in values:
            x, bottom = self.x(value), self.top + self.height
            if grid:
                drawn.append(line((x, self.top), (x, bottom), "grid"))
            drawn.append(text((x, bottom + _TICK_DROP), f"{value:,g}", anchor="middle", css="small"))
        return drawn

    def y_ticks(self, values: Iterable[float]) -> list[str]:
        """Return labels left of the area and grid lines across it."""
        drawn = []
        for value in values:
            y = self.y(value)
            drawn.append(line((self.left, y), (self.left + self.width, y), "grid"))
            drawn.append(text((self.left - _TICK_GAP, y + _BASELINE), f"{value:,g}", anchor="end", css="small"))
        return drawn

    def labels(self, x_label: str, y_label: str) -> list[str]:
        """Return the names of both axes."""
        middle = self.left + self.width / 2
        return [
            text((middle, self.top + self.height + _LABEL_DROP), x_label, anchor="middle", css="axis"),
            vertical_label(self.top + self.height / 2, y_label),
        ]


def vertical_label(y: float, content: str) -> str:
    """Return the name of a vertical axis, at the left edge of the picture."""
    return text((_LABEL_X, y), content, anchor="middle", css="axis", turn=-90)


def round_ticks(most: float) -> list[float]:
    """Return about five ticks from 0 to at least ``most``, in steps of 1, 2 or 5 times a power of ten."""
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * index for index in range(math.ceil(most / step * 1.02) + 1)]


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _title(content: str) -> str:
    return f"<title>{escape(content)}</title>" if content else ""


def _opacity(value: float) -> str:
    return f' fill-opacity="{value:.3f}"' if value < 1 else ""
