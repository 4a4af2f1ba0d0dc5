"""Two reports side by side, as one page."""

from __future__ import annotations

from html import escape

from hagmil.reports.page import html_page
from hagmil.runtime.bench.charts import Stack, bars_svg, legend, stacks_svg
from hagmil.runtime.bench.figures import Figure, Pair, differences, pairs_of, shown
from hagmil.runtime.bench.page import STYLE, step_colours, throughput_bars
from hagmil.runtime.bench.report import BenchReport


def render_comparison(first: BenchReport, second: BenchReport, names: tuple[str, str]) -> str:
    """The page of two reports.

    Args:
        first: the one that is held against.
        second: the one that is judged.
        names: what to call them.

    Returns:
        HTML with its style and pictures inside; it loads nothing.
    """
    a, b = (escape(name) for name in names)
    notes = differences(first, second)
    head = (
        f"<header><h1>Two reports side by side</h1><p><b>A</b> {a}, {first.created:%Y-%m-%d %H:%M} UTC, hagmil "
        f"{escape(first.hagmil)}, {escape(first.machine.cpu)}</p><p><b>B</b> {b}, {second.created:%Y-%m-%d %H:%M} UTC, "
        f"hagmil {escape(second.hagmil)}, {escape(second.machine.cpu)}</p></header>"
    )
    differ = "".join(f"<li>{escape(note)}</li>" for note in notes)
    told = f'<h2>They differ in</h2><ul class="notes">{differ}</ul>' if notes else ""
    return html_page("hagmil bench: A and B", head + told + _pictures(first, second) + _table(first, second), STYLE)


def change_in_words(pair: Pair) -> tuple[str, str]:
    """What became of a figure, and its kind: ``better``, ``worse`` or ``neutral``."""
    gain = pair.gain
    if gain is None:
        return "", "neutral"
    if not pair.is_clear:
        return "alike", "neutral"
    if gain >= 1:
        return f"{gain:.2f} times better", "better"
    return f"{1 / gain:.2f} times worse", "worse"


def value_in_words(figure: Figure | None) -> str:
    """A figure of one of the two, or that it has none."""
    return "-" if figure is None else shown(figure.value, figure.unit)


def _pictures(first: BenchReport, second: BenchReport) -> str:
    runs = [first.end_to_end, second.end_to_end]
    colours = step_colours(runs)
    stacks = [
        Stack(f"{name}, {run.provider}", run.steps_s, shown(run.seconds, "s"))
        for name, run in zip("AB", runs, strict=True)
    ]
    ours, theirs = throughput_bars(first, "A: ", 7), throughput_bars(second, "B: ", 0)
    paired = sorted(
        (*ours, *theirs), key=lambda bar: [each.label[3:] for each in (*ours, *theirs)].index(bar.label[3:])
    )
    return (
        '<h2>One slide, end to end</h2><figure class="full"><figcaption>Seconds by step</figcaption>'
        f"{stacks_svg('Seconds by step', stacks, colours)}{legend(list(colours.items()))}</figure>"
        '<h2>Throughput</h2><figure class="full"><figcaption>Patches per second</figcaption>'
        f"{bars_svg('Patches per second', paired)}{legend([('A', 7), ('B', 0)])}</figure>"
    )


def _table(first: BenchReport, second: BenchReport) -> str:
    rows, group = [], ""
    for pair in pairs_of(first, second):
        figure = pair.any
        if figure.group != group:
            group = figure.group
            rows.append(f'<tr class="group"><td colspan="4">{escape(group)}</td></tr>')
        words, kind = change_in_words(pair)
        rows.append(
            f'<tr><td>{escape(figure.name)}</td><td class="number">{value_in_words(pair.first)}</td>'
            f'<td class="number">{value_in_words(pair.second)}</td><td class="{kind}">{words}</td></tr>'
        )
    return (
        '<h2>All figures</h2><div class="wide"><table><thead><tr><th>figure</th><th class="number">A</th>'
        f'<th class="number">B</th><th>B is</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "<p>Better or worse where all runs of one report lie beyond all runs of the other, and by 5 % at least; else "
        "alike.</p>"
    )
