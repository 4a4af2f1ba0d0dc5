"""The evaluation's pictures as SVG text: ROC curves, calibration and confusion; no library, no outside asset.

All plots share a square of 0 to 1 on both axes. Colours come from the page's CSS (``--series-0`` and so on), so
that a picture follows the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hagmil.reports.page import COLOURS, svg
from hagmil.trainer.metrics.bootstrap import CalibrationBin, Estimate

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 320, 52, 14, 14, 46
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LABEL_AT_MOST = 14


def roc_points(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """The corners of a ROC curve: (1 - specificity, sensitivity), from (0, 0) to (1, 1).

    Args:
        scores: float64 (slides,).
        positive: bool (slides,).

    Returns:
        The points; empty where one of the two kinds is absent.
    """
    if positive.all() or not positive.any():
        return []
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.inf))  # of runs of equal scores
    hits = np.cumsum(positive[order])[ends] / positive.sum()
    alarms = np.cumsum(~positive[order])[ends] / (~positive).sum()
    points = [(0.0, 0.0), *zip(alarms.tolist(), hits.tolist(), strict=True)]
    return _corners(points)


def roc_svg(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """ROC curves of several classes in one square.

    Args:
        curves: for each class its name and points; a class without points is left out but keeps its colour.
    """
    lines = [_line((0.0, 0.0), (1.0, 1.0), "chance")]
    for index, (name, points) in enumerate(curves):
        if points:
            path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
            dashes = ' stroke-dasharray="6 3"' if index >= COLOURS else ""
            lines.append(
                f'<polyline points="{path}" fill="none" stroke="var(--series-{index % COLOURS})" '
                f'stroke-width="2"{dashes}><title>{escape(name)}</title></polyline>'
            )
    return _square("ROC curves", "1 - specificity", "sensitivity", lines)


def calibration_svg(bins: Sequence[CalibrationBin]) -> str:
    """Accuracy against probability, a dot a bin, its area by its number of slides.

    Args:
        bins: of the calibration error.
    """
    most = max((each.slides for each in bins), default=0)
    parts = [_line((0.0, 0.0), (1.0, 1.0), "chance")]
    for each in bins:
        if each.probability is None or each.accuracy is None:
            continue
        radius = 3 + 7 * (each.slides / most) ** 0.5
        words = f"{each.slides} slides: probability {each.probability:.3f}, accuracy {each.accuracy:.3f}"
        parts.append(_line((each.probability, each.probability), (each.probability, each.accuracy), "gap"))
        parts.append(
            f'<circle cx="{_x(each.probability):.1f}" cy="{_y(each.accuracy):.1f}" r="{radius:.1f}" '
            f'fill="var(--series-0)" fill-opacity="0.75"><title>{words}</title></circle>'
        )
    return _square("Calibration", "probability of the prediction", "accuracy", parts)


def confusion_svg(classes: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[Estimate]]) -> str:
    """The confusion matrix: slides by label (row) and prediction (column), shaded by the share of the row.

    Args:
        classes: names.
        counts: slides, rows of labels.
        shares: the same as shares of each row, with intervals.
    """
    cell, left, top = 64, 130, 92
    side = cell * len(classes)
    parts = [
        f'<text class="axis" x="{left + side / 2}" y="14" text-anchor="middle">prediction</text>',
        f'<text class="axis" text-anchor="middle" transform="translate(14,{top + side / 2}) rotate(-90)">label</text>',
    ]
    for index, name in enumerate(classes):
        middle = cell * index + cell / 2
        short = escape(_short(name))
        parts.append(
            f'<text transform="translate({left + middle + 4},{top - 8}) rotate(-35)"><title>{escape(name)}</title>'
            f"{short}</text>"
        )
        parts.append(
            f'<text x="{left - 8}" y="{top + middle + 4}" text-anchor="end"><title>{escape(name)}</title>{short}</text>'
        )
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            parts.append(_cell(left + cell * j, top + cell * i, cell - 2, count, shares[i][j], right=i == j))
    return svg("Confusion matrix", left + side + 70, top + side + 8, parts)


def _cell(x: int, y: int, side: int, count: int, share: Estimate, *, right: bool) -> str:
    value = share.value or 0.0
    interval = "" if share.low is None or share.high is None else f" ({share.low:.2f} to {share.high:.2f})"
    shown = "" if share.value is None else f"{100 * value:.0f} %"
    colour = "var(--series-0)" if right else "var(--series-1)"
    middle = x + side / 2
    return (
        f'<g><title>{count} slides, {shown}{interval}</title><rect x="{x}" y="{y}" width="{side}" height="{side}" '
        f'rx="4" class="cell"/><rect x="{x}" y="{y}" width="{side}" height="{side}" rx="4" fill="{colour}" '
        f'fill-opacity="{0.65 * value:.3f}"/><text x="{middle}" y="{y + side / 2 - 1}" text-anchor="middle" '
        f'class="count">{count}</text><text x="{middle}" y="{y + side / 2 + 15}" text-anchor="middle" '
        f'class="small">{shown}</text></g>'
    )


def _square(title: str, x_label: str, y_label: str, parts: Sequence[str]) -> str:
    grid = []
    for tick in _TICKS:
        grid.append(_line((tick, 0.0), (tick, 1.0), "grid") + _line((0.0, tick), (1.0, tick), "grid"))
        grid.append(f'<text class="small" x="{_x(tick):.1f}" y="{_y(0) + 16}" text-anchor="middle">{tick:g}</text>')
        grid.append(f'<text class="small" x="{_LEFT - 8}" y="{_y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = _SIDE / 2
    labels = [
        f'<text class="axis" x="{_LEFT + middle}" y="{_TOP + _SIDE + 38}" text-anchor="middle">{x_label}</text>',
        f'<text class="axis" text-anchor="middle" transform="translate(14,{_TOP + middle}) rotate(-90)">'
        f"{y_label}</text>",
    ]
    return svg(title, _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM, [*grid, *parts, *labels])


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{_x(start[0]):.1f}" y1="{_y(start[1]):.1f}" x2="{_x(end[0]):.1f}" '
        f'y2="{_y(end[1]):.1f}"/>'
    )


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the points in the middle of a straight run along an axis."""
    kept = points[:1]
    for point, following in pairwise(points[1:]):
        before = kept[-1]
        if not (before[0] == point[0] == following[0] or before[1] == point[1] == following[1]):
            kept.append(point)
    return [*kept, points[-1]]


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_AT_MOST else f"{name[: _LABEL_AT_MOST - 1]}…"


def _x(value: float) -> float:
    return _LEFT + _SIDE * value


def _y(value: float) -> float:
    return _TOP + _SIDE * (1 - value)
