"""Render docs/benchmarks-stability.md and its curves from the results of digit_pyramid and keep_stability.

    python -m benchmarks.render_stability

Results are ``benchmarks/results/stability/digits-RECIPE.json`` and ``phantoms-RECIPE.json``; the text around the tables
is ``benchmarks/stability_page.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import two_types
from hagmil.reports import svg

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "benchmarks-stability.md"
TEXT = Path(__file__).with_name("stability_page.md")
RECIPE = "additive-teach"
"""The recipe of the package's own models."""
NAMES = {
    "additive-teach": "all three",
    "additive-keep8-teach": "without random K",
    "additive-random": "without teaching",
    "pooled-teach": "without the additive read-out",
    "additive-transformer-teach": "all three, rows of the transformer",
    "pooled-keep8": "none of them (as published, keep 8)",
}
"""Names of the recipes, in the order of the tables."""
COLOURS = ("#2266c2", "#c8501e", "#1d8a63", "#8a4fc0", "#b08500", "#c23a78", "#1a8fa8", "#6b7280")
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#333}.small{font-size:11px}.axis{font-size:12px}"
    ".grid{stroke:#ddd;stroke-width:1}svg{background:#fff}</style>"
)
_LEFT, _TOP, _WIDTH, _HEIGHT, _LEGEND = 56, 14, 430, 250, 280


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a method: patches read and share right in %."""

    name: str
    points: tuple[tuple[float, float], ...]


def main() -> None:
    text = TEXT.read_text()
    for name, content in blocks():
        text = text.replace(f"<!-- {name} -->", content)
    PAGE.write_text(text)


def blocks() -> Iterator[tuple[str, str]]:
    """The tables and figures by name, for ``<!-- NAME -->`` in the text."""
    digits, phantoms = load("digits"), load("phantoms")
    for test in ("same", "large"):
        yield f"digits-{test}", digits_table(digits, test)
        yield f"digits-{test}-curve", figure(f"digits-{test}", digit_curves(digits, test))
    yield "digits-sure", digits_sure(digits)
    sizes = phantoms[RECIPE]["means"]
    yield "phantoms", "\n\n".join(f"### {int(size):,} px\n\n{phantoms_table(phantoms, size)}" for size in sizes)
    yield "phantoms-8192-curve", figure("phantoms-8192", phantom_curves(phantoms, "8192"))
    yield "phantoms-sure", phantoms_sure(phantoms)
    yield "two-types", two_types.markdown(json.loads((RESULTS / "two_types.json").read_text()))


def load(kind: str) -> dict[str, dict[str, Any]]:
    """Results by recipe, in the order of the names; recipes without a result are left out."""
    paths = {recipe: RESULTS / "stability" / f"{kind}-{recipe}.json" for recipe in NAMES}
    return {recipe: json.loads(path.read_text()) for recipe, path in paths.items() if path.exists()}


def digits_table(reports: dict[str, dict[str, Any]], test: str) -> str:
    """Share right in % for each recipe, seed and K."""
    keeps = [row["keep"] for row in reports[RECIPE]["runs"][0][test]["keeps"]]
    lines = [_row(["training", "seed", *(f"K = {keep}" if keep else "all" for keep in keeps), "validation loss"])]
    lines.append("|---|---:|" + "---:|" * (len(keeps) + 1))
    for recipe, report in reports.items():
        for run in report["runs"]:
            right = [f"{100 * row['right']:.0f}" for row in run[test]["keeps"]]
            lines.append(_row([NAMES[recipe], run["seed"], *right, f"{run['validation_loss']:.3f}"]))
    read = [f"{row['patches_read']:,.0f}" for row in _mean_keeps([run[test] for run in reports[RECIPE]["runs"]])]
    lines.append(_row(["patches read, mean", "", *read, ""]))
    return "\n".join(lines)


def digits_sure(reports: dict[str, dict[str, Any]]) -> str:
    """Sure verdicts of the adaptive cascade, pooled over seeds."""
    lines = [
        "| training | seeds | size | sure verdicts that are right | unsure | patches read | CPU seconds, mean |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for recipe, report in reports.items():
        seconds = np.mean([run["cpu_seconds"] for run in report["runs"]])
        for test, name in (("same", "training size"), ("large", "16 times")):
            cells = _sure([run[test]["certainty"] for run in report["runs"]])
            lines.append(_row([NAMES[recipe], len(report["runs"]), name, *cells, f"{seconds:.0f}"]))
    return "\n".join(lines)


def phantoms_table(reports: dict[str, dict[str, Any]], size: str) -> str:
    """Share right and agreement with everything in % for each recipe and K, of each seed."""
    keeps = [row["keep"] for row in reports[RECIPE]["means"][size]["keeps"]]
    lines = [_row(["training", "", *(f"K = {keep}" if keep else "all" for keep in keeps)])]
    lines.append("|---|---|" + "---:|" * len(keeps))
    for recipe, report in reports.items():
        runs = [run["sizes"][size]["keeps"] for run in report["runs"]]
        for key in ("right", "agreement"):
            shares = ["/".join(f"{100 * run[place][key]:.0f}" for run in runs) for place in range(len(keeps))]
            lines.append(_row([NAMES[recipe], key, *shares]))
    read = [f"{row['patches_read']:,.0f}" for row in reports[RECIPE]["means"][size]["keeps"]]
    lines.append(_row(["patches read, mean", "", *read]))
    return "\n".join(lines)


def phantoms_sure(reports: dict[str, dict[str, Any]]) -> str:
    """Sure verdicts of the adaptive cascade, pooled over seeds, and the cost of training."""
    lines = [
        "| training | size | sure verdicts that are right | unsure | patches read | CPU seconds of each training |",
        "|---|---|---:|---:|---:|---|",
    ]
    for recipe, report in reports.items():
        seconds = ", ".join(f"{run['cpu_seconds']:.0f}" for run in report["runs"])
        for size in report["means"]:
            cells = _sure([run["sizes"][size]["certainty"] for run in report["runs"]])
            lines.append(_row([NAMES[recipe], f"{int(size):,} px", *cells, seconds]))
    return "\n".join(lines)


def digit_curves(reports: dict[str, dict[str, Any]], test: str) -> list[Curve]:
    """Means over seeds of each recipe, and the other methods as points."""
    curves = [
        Curve(NAMES[recipe], _points([run[test] for run in report["runs"]])) for recipe, report in reports.items()
    ]
    return curves + _others([run["others"] for run in reports[RECIPE]["runs"] if "others" in run], test)


def phantom_curves(reports: dict[str, dict[str, Any]], size: str) -> list[Curve]:
    """Means over seeds of each recipe, and the other methods as points."""
    curves = [
        Curve(NAMES[recipe], _points([run["sizes"][size] for run in report["runs"]]))
        for recipe, report in reports.items()
    ]
    return curves + _others([run["others"] for run in reports[RECIPE]["runs"] if "others" in run], size)


def figure(name: str, curves: Sequence[Curve]) -> str:
    """Write a plot to docs/figures and return the Markdown that shows it."""
    path = DOCS / "figures" / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(plot(curves))
    return f"![right verdicts over patches read](figures/{path.name})"


def plot(curves: Sequence[Curve]) -> str:
    """Draw right verdicts over the logarithm of the patches read; methods with one point are dots."""
    read = [x for curve in curves for x, _ in curve.points]
    lowest = min(50.0, *(10 * int(y / 10) for curve in curves for _, y in curve.points))
    axes = svg.Axes(
        _LEFT,
        _TOP,
        _WIDTH,
        _HEIGHT,
        svg.Scale(min(read) * 0.9, max(read) * 1.1, _LEFT, _LEFT + _WIDTH, logarithmic=True),
        svg.Scale(lowest, 101, _TOP + _HEIGHT, _TOP),
    )
    ticks = [tick for power in range(1, 7) for tick in (10**power, 3 * 10**power) if min(read) <= tick <= max(read)]
    drawn = [_STYLE, *axes.x_ticks(ticks), *axes.y_ticks(np.arange(lowest, 101, 10).tolist())]
    for place, curve in enumerate(curves):
        colour = COLOURS[place % len(COLOURS)]
        dots = [axes.place(*point) for point in curve.points]
        if len(dots) > 1:
            drawn.append(svg.polyline(dots, colour, title=curve.name))
        drawn += [svg.circle(dot, 3 if len(dots) > 1 else 5, colour, title=curve.name) for dot in dots]
        y = _TOP + 14 + 20 * place
        drawn.append(svg.circle((_LEFT + _WIDTH + 20, y), 5, colour))
        drawn.append(svg.text((_LEFT + _WIDTH + 32, y + 4), curve.name))
    drawn += axes.labels("patches read, all stages (logarithmic)", "right, %")
    picture = svg.picture("right verdicts over patches read", _LEFT + _WIDTH + _LEGEND, _TOP + _HEIGHT + 46, drawn)
    return picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _others(found: Sequence[dict[str, Any]], test: str) -> list[Curve]:
    return [
        Curve(
            method,
            (
                (
                    float(np.mean([each[method][test]["patches_read"] for each in found])),
                    100 * float(np.mean([each[method][test]["right"] for each in found])),
                ),
            ),
        )
        for method in (found[0] if found else ())
    ]


def _points(tables: Sequence[dict[str, Any]]) -> tuple[tuple[float, float], ...]:
    return tuple((row["patches_read"], 100 * row["right"]) for row in _mean_keeps(tables))


def _mean_keeps(tables: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    rows = zip(*(table["keeps"] for table in tables), strict=True)
    return [{key: float(np.mean([row[key] for row in each])) for key in ("right", "patches_read")} for each in rows]


def _sure(found: Sequence[dict[str, Any]]) -> list[str]:
    slides, sure, right = (sum(each[key] for each in found) for key in ("slides", "sure", "sure_right"))
    share = f"{right} of {sure} ({right / sure:.1%})" if sure else "0 of 0"
    return [share, f"{1 - sure / slides:.1%}", f"{np.mean([each['patches_read'] for each in found]):,.0f}"]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
