"""Plots of the evaluation report: ROC curves, calibration and confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hagmil.reports import svg
from hagmil.reports.theme import SERIES, series_colour
from hagmil.trainer.metrics.bootstrap import CalibrationBin
from hagmil.trainer.metrics.estimate import Estimate

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 320, 52, 14, 14, 46
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CELL_PX, _CELL_GAP = 64, 2
_MATRIX_LEFT, _MATRIX_TOP = 130, 92
_MOST_LETTERS = 14

_UNIT_SQUARE = svg.Axes(
    left=_LEFT,
    top=_TOP,
    width=_SIDE,
    height=_SIDE,
    x=svg.Scale(0, 1, _LEFT, _LEFT + _SIDE),
    y=svg.Scale(0, 1, _TOP + _SIDE, _TOP),
)


def roc_points(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Compute the corners of a ROC curve.

    Args:
        scores: float64 (slides,).
        positive: bool (slides,).

    Returns:
        Points (1 - specificity, sensitivity) from (0, 0) to (1, 1); empty unless both positive and negative slides
        occur.
    """
    if positive.all() or not positive.any():
        return []
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.inf))  # of runs of equal scores
    sensitivity = np.cumsum(positive[order])[ends] / positive.sum()
    false_positive_rate = np.cumsum(~positive[order])[ends] / (~positive).sum()
    return _corners([(0.0, 0.0), *zip(false_positive_rate.tolist(), sensitivity.tolist(), strict=True)])


def roc_svg(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Draw the ROC curves of several classes.

    Args:
        curves: name and points of each class; a class without points is left out but keeps its colour.
    """
    drawn = [_diagonal()]
    for index, (name, points) in enumerate(curves):
        if points:
            dashes = "6 3" if index >= SERIES else ""
            path = [_UNIT_SQUARE.place(*point) for point in points]
            drawn.append(svg.polyline(path, series_colour(index), dashes=dashes, title=name))
    return _square("ROC curves", "1 - specificity", "sensitivity", drawn)


def calibration_svg(bins: Sequence[CalibrationBin]) -> str:
    """Plot accuracy against probability, with one dot for each bin; larger dots stand for more slides.

    Args:
        bins: the bins of the calibration error.
    """
    most = max((each.slides for each in bins), default=0)
    drawn = [_diagonal()]
    for each in bins:
        if each.probability is None or each.accuracy is None:
            continue
        dot = each.probability, each.accuracy
        title = f"{each.slides} slides: probability {each.probability:.3f}, accuracy {each.accuracy:.3f}"
        drawn.append(_UNIT_SQUARE.line((each.probability, each.probability), dot, "gap"))
        radius = 3 + 7 * (each.slides / most) ** 0.5
        drawn.append(svg.circle(_UNIT_SQUARE.place(*dot), radius, series_colour(0), opacity=0.75, title=title))
    return _square("Calibration", "probability of the prediction", "accuracy", drawn)


def confusion_svg(classes: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[Estimate]]) -> str:
    """Draw the confusion matrix, shaded by the share of each label's slides.

    Args:
        classes: names.
        counts: slides by label (row) and prediction (column).
        shares: the same as shares of each row, with intervals.
    """
    left, top, side = _MATRIX_LEFT, _MATRIX_TOP, _CELL_PX * len(classes)
    drawn = [
        svg.text((left + side / 2, 14), "prediction", anchor="middle", css="axis"),
        svg.vertical_label(top + side / 2, "label"),
    ]
    for index, name in enumerate(classes):
        middle = _CELL_PX * (index + 0.5)
        drawn.append(svg.text((left + middle + 4, top - 8), _short(name), turn=-35, title=name))
        drawn.append(svg.text((left - 8, top + middle + 4), _short(name), anchor="end", title=name))
    for row, row_counts in enumerate(counts):
        for column, count in enumerate(row_counts):
            corner = left + _CELL_PX * column, top + _CELL_PX * row
            drawn.append(_cell(corner, count, shares[row][column], correct=row == column))
    return svg.picture("Confusion matrix", left + side + 70, top + side + 8, drawn)


def _cell(corner: svg.Point, count: int, share: Estimate, *, correct: bool) -> str:
    value, side = share.value or 0.0, _CELL_PX - _CELL_GAP
    interval = "" if share.low is None or share.high is None else f" ({share.low:.2f} to {share.high:.2f})"
    percent = "" if share.value is None else f"{100 * value:.0f} %"
    middle_x, middle_y = corner[0] + side / 2, corner[1] + side / 2
    parts = (
        svg.rect(corner, side, side, css="cell"),
        svg.rect(corner, side, side, colour=series_colour(0 if correct else 1), opacity=0.65 * value),
        svg.text((middle_x, middle_y - 1), str(count), anchor="middle", css="count"),
        svg.text((middle_x, middle_y + 15), percent, anchor="middle", css="small"),
    )
    return svg.group(f"{count} slides, {percent}{interval}", parts)


def _square(title: str, x_label: str, y_label: str, drawn: Sequence[str]) -> str:
    """Put a plot on axes from 0 to 1."""
    grid = [*_UNIT_SQUARE.x_ticks(_TICKS), *_UNIT_SQUARE.y_ticks(_TICKS)]
    return svg.picture(
        title, _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM, [*grid, *drawn, *_UNIT_SQUARE.labels(x_label, y_label)]
    )


def _diagonal() -> str:
    return _UNIT_SQUARE.line((0, 0), (1, 1), "chance")


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Remove the points inside a straight run along an axis."""
    kept = points[:1]
    for point, following in pairwise(points[1:]):
        before = kept[-1]
        if not (before[0] == point[0] == following[0] or before[1] == point[1] == following[1]):
            kept.append(point)
    return [*kept, points[-1]]


def _short(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
