"""The section of the evaluation report about the number of kept patches: a table and a curve."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hagmil.bundle import Tested, TestedKeep, TestedSize
from hagmil.reports import svg
from hagmil.reports.page import legend
from hagmil.reports.theme import series_colour

_LEFT, _TOP, _WIDTH, _HEIGHT, _RIGHT, _BOTTOM = 52, 14, 520, 260, 20, 46
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_RADIUS = 3.5


def keep_section(tested: Tested) -> str:
    """Render the verdicts by number of kept patches and by slide size as HTML.

    Args:
        tested: the results of ``--keeps``.
    """
    groups = _groups(tested)
    entries = [(name, index) for index, (name, _) in enumerate(groups)]
    return (
        f"<h2>Number of kept patches</h2><p>{_summary(tested)} The margin of a class is the median, over its slides, "
        "of its logit minus the highest other logit. Patches read are the mean over slides, of all stages.</p>"
        f"{_table(tested)}<p></p>"
        '<div class="plots"><figure><figcaption>Correct verdicts (solid) and agreement with all patches (dashed)'
        f"</figcaption>{keep_svg(groups)}{legend(entries)}</figure></div>"
    )


def keep_svg(groups: Sequence[tuple[str, Sequence[TestedKeep]]]) -> str:
    """Plot the share of correct verdicts and the agreement with all patches over the patches read.

    Args:
        groups: name and rows of each range of slide sizes.
    """
    reads = [row.patches_read for _, rows in groups for row in rows]
    low, high = min(reads), max(reads)
    axes = svg.Axes(
        left=_LEFT,
        top=_TOP,
        width=_WIDTH,
        height=_HEIGHT,
        x=svg.Scale(low, high, _LEFT + 12, _LEFT + _WIDTH - 12, logarithmic=True),
        y=svg.Scale(0, 1, _TOP + _HEIGHT, _TOP),
    )
    drawn = [*axes.x_ticks(_ticks(low, high)), *axes.y_ticks(_SHARES)]
    for index, (name, rows) in enumerate(groups):
        drawn += _curve(axes, name, rows, index)
    drawn += axes.labels("patches read per slide", "share of slides")
    return svg.picture("Verdicts by patches read", _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM, drawn)


def _curve(axes: svg.Axes, name: str, rows: Sequence[TestedKeep], series: int) -> list[str]:
    colour = series_colour(series)
    right = [axes.place(row.patches_read, row.right) for row in rows]
    agreement = [axes.place(row.patches_read, row.agreement) for row in rows]
    drawn = [
        svg.polyline(agreement, colour, dashes="6 3", title=f"{name}: agreement with all patches"),
        svg.polyline(right, colour, title=f"{name}: correct verdicts"),
    ]
    for point, row in zip(right, rows, strict=True):
        title = f"{name}, keep {_keep(row)}: {row.right:.1%} correct, {row.agreement:.1%} agree with all patches"
        drawn.append(svg.circle(point, _RADIUS, colour, title=title))
    return drawn


def _ticks(low: float, high: float) -> list[float]:
    """Values of 1, 2 or 5 times a power of ten in a range; its ends if there are fewer than two."""
    steps = [factor * 10.0**power for power in range(10) for factor in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    return inside if len(inside) > 1 else sorted({low, high})


def _groups(tested: Tested) -> list[tuple[str, tuple[TestedKeep, ...]]]:
    """The ranges of slide sizes, or all slides if there is one range."""
    return [(_size(part), part.keeps) for part in tested.sizes or (tested,)]


def _size(part: Tested | TestedSize) -> str:
    return f"{part.smallest_bag:,} to {part.largest_bag:,} coarse patches"


def _summary(tested: Tested) -> str:
    slides = f"{tested.slides} slides of {_size(tested)}."
    if tested.held_from is None:
        return f"{slides} With every tested number of kept patches, some verdicts differ from those of all patches."
    return f"{slides} From {tested.held_from} kept patches on, every verdict is that of all patches."


def _table(tested: Tested) -> str:
    groups = [("all", tested.keeps), *(_groups(tested) if tested.sizes else ())]
    classes = list(tested.keeps[0].margins)
    heads = (
        "slides",
        "keep",
        "right",
        "AUC",
        "agreement",
        "patches read",
        *(f"margin, {name}" for name in classes),
    )
    body = "".join(_row(name, row) for name, rows in groups for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(name: str, row: TestedKeep) -> str:
    cells = [
        name,
        _keep(row),
        f"{row.right:.1%}",
        "undefined" if row.auc is None else f"{row.auc:.3f}",
        f"{row.agreement:.1%}",
        f"{row.patches_read:,.0f}",
        *("" if margin is None else f"{margin:+.2f}" for margin in row.margins.values()),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _keep(row: TestedKeep) -> str:
    return "all" if row.keep is None else f"{row.keep}"
