"""``comparison.html``: two reports side by side on one page."""

from __future__ import annotations

from html import escape

from hagmil.reports.page import html_page, legend
from hagmil.runtime.bench.charts import Stack, bars_svg, stacks_svg
from hagmil.runtime.bench.figures import Figure, Pair, differences, pairs_of, shown
from hagmil.runtime.bench.page import INLINE, STYLE, step_colours, throughput_bars
from hagmil.runtime.bench.report import BenchReport


def render_comparison(first: BenchReport, second: BenchReport, names: tuple[str, str]) -> str:
    """Render two reports as HTML.

    Args:
        first: the baseline, report A.
        second: report B, which is compared with it.
        names: names of both for the page.

    Returns:
        A complete page; style and pictures are embedded.
    """
    a, b = (escape(name) for name in names)
    notes = differences(first, second)
    head = (
        f"<header><h1>Two reports side by side</h1><p><b>A</b> {a}, {first.created:%Y-%m-%d %H:%M} UTC, hagmil "
        f"{escape(first.hagmil)}, {escape(first.machine.cpu)}</p><p><b>B</b> {b}, {second.created:%Y-%m-%d %H:%M} UTC, "
        f"hagmil {escape(second.hagmil)}, {escape(second.machine.cpu)}</p></header>"
    )
    differ = "".join(f"<li>{escape(note)}</li>" for note in notes)
    facts = f'<h2>Differences between the reports</h2><ul class="notes">{differ}</ul>' if notes else ""
    return html_page("hagmil bench: A and B", head + facts + _pictures(first, second) + _table(first, second), STYLE)


def change_in_words(pair: Pair) -> tuple[str, str]:
    """Describe the change of a figure from the first report to the second.

    Returns:
        The change in words, and its kind: ``better``, ``worse`` or ``neutral``.
    """
    gain = pair.gain
    if gain is None:
        return "", "neutral"
    if not pair.is_clear:
        return "similar", "neutral"
    if gain >= 1:
        return f"{gain:.2f} times better", "better"
    return f"{1 / gain:.2f} times worse", "worse"


def value_in_words(figure: Figure | None) -> str:
    """Return a figure with its unit; a dash where the report lacks it."""
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
        f"{stacks_svg('Seconds by step', stacks, colours)}{legend(list(colours.items()), css=INLINE)}</figure>"
        '<h2>Throughput</h2><figure class="full"><figcaption>Patches per second</figcaption>'
        f"{bars_svg('Patches per second', paired)}{legend([('A', 7), ('B', 0)], css=INLINE)}</figure>"
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
        '<h2>All measurements</h2><div class="wide"><table><thead><tr><th>measurement</th><th class="number">A</th>'
        f'<th class="number">B</th><th>B is</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "<p>B is better or worse where the ranges of all runs do not overlap and the values differ by at least 5 %; "
        "otherwise both are similar.</p>"
    )
