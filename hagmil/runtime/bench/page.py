"""``report.html``: the report as one page that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from hagmil._files import write_text
from hagmil.reports.page import html_page, legend
from hagmil.runtime.bench.charts import Bar, Line, Stack, bars_svg, lines_svg, stacks_svg
from hagmil.runtime.bench.figures import Figure, figures_of, limiting_step, shown
from hagmil.runtime.bench.report import HTML_NAME, JSON_NAME, BenchReport, EndToEnd, SweepPoint

STYLE: Final = """
h1 { font-size: 28px; letter-spacing: -0.01em; } header p { margin: 2px 0; max-width: none; }
header b { color: var(--ink); font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 14px; margin: 22px 0 8px; }
.card { background: var(--panel); border-radius: 10px; padding: 14px 16px 12px; border-top: 3px solid var(--series-0); }
.card .number { font-size: 26px; font-weight: 650; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.card .number small { font-size: 14px; font-weight: 500; color: var(--soft); }
.card .what { color: var(--soft); font-size: 13px; line-height: 1.35; }
.lead { font-size: 16px; color: var(--ink); } figure.full { width: 100%; margin-bottom: 16px; }
svg { max-width: 100%; height: auto; display: block; } figure.full svg { width: 100%; }
svg .track { fill: var(--rule); fill-opacity: 0.45; }
svg .value { font-weight: 600; } svg .onbar { fill: var(--page); font-weight: 600; }
ul.row { display: flex; flex-wrap: wrap; gap: 4px 20px; } ul.row .key { height: 10px; width: 10px; }
td.number, th.number { text-align: right; padding-right: 22px; } tr.group td { font-weight: 600; padding-top: 16px; }
td.spread, td.neutral { color: var(--soft); } td.better { color: var(--series-2); font-weight: 600; }
td.worse { color: var(--series-1); font-weight: 600; } ul.notes { color: var(--soft); padding-left: 18px; }
table.facts td:first-child { color: var(--soft); } table.facts td { white-space: normal; }
"""

INLINE: Final = "legend row"
"""CSS classes of a legend whose entries are side by side."""

STEP_COLOURS: Final = {
    "backbone": 0,
    "waiting for patches": 1,
    "mask": 2,
    "stage models": 3,
    "open": 5,
    "picture": 4,
    "write": 6,
    "other": 7,
}
_START_UP_COLOURS: Final = {"interpreter": 7, "imports": 4, "models": 3, "slide, mask and first batch": 1}
_MEMORY_COLOURS: Final = {"packages and models": 3, "above them": 0}
_SWEEPS: Final = {
    "read_threads": ("Reading alone", "reader threads"),
    "backbone_batch": ("Backbone alone", "patches in a batch"),
    "backbone_threads": ("Backbone alone, CPU", "threads"),
    "model_patches": ("The finest stage's model", "patches in the bag"),
}


def render_html(report: BenchReport) -> str:
    """Render a report as HTML.

    Args:
        report: the measurements.

    Returns:
        A complete page; style and pictures are embedded.
    """
    return html_page(
        f"hagmil bench: {report.slide.name}",
        "".join(
            (
                _head(report),
                _cards(report),
                f'<p class="lead">{escape(limiting_step(report))}</p>',
                _end_to_end(report),
                _throughput(report),
                _start_and_memory(report),
                _sweeps(report.sweep),
                _table(figures_of(report)),
                _facts(report),
                _method(report),
            )
        ),
        STYLE,
    )


def throughput_bars(report: BenchReport, prefix: str = "", series: int | None = None) -> list[Bar]:
    """List the throughput of every measurement as bars.

    Args:
        report: the measurements.
        prefix: put before each label.
        series: colour of all bars; None for one colour for each kind of measurement.
    """
    found = [("reading alone", report.read.patches_per_s, 1)]
    found += [(f"backbone alone, {name}", each.patches_per_s, 0) for name, each in report.backbone.items()]
    found += [(f"both together, {name}", each.patches_per_s, 2) for name, each in report.pipeline.items()]
    runs = report.end_to_end_by_provider.items()
    found += [(f"end to end, {name}", each.patches_per_s, 3) for name, each in runs]
    return [
        Bar(prefix + name, rate, shown(rate, "patches/s"), own if series is None else series)
        for name, rate, own in found
    ]


def step_colours(runs: Sequence[EndToEnd]) -> dict[str, int]:
    """Return the number of the colour of every step of these runs."""
    names = dict.fromkeys(name for run in runs for name in run.steps_s)
    return {name: STEP_COLOURS.get(name, 5) for name in names}


def _head(report: BenchReport) -> str:
    machine, slide, bundle = report.machine, report.slide, report.bundle
    gpus = f", {escape(', '.join(machine.gpus))}" if machine.gpus else ""
    memory = f", {machine.memory_gb:.0f} GB" if machine.memory_gb else ""
    kernel = f", tile kernel {escape(machine.tile_kernel)}" if machine.tile_kernel else ""
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    phantom = " (phantom made for this report)" if slide.phantom else ""
    builtin = " (built-in demonstration model)" if bundle.builtin else ""
    return (
        f"<header><h1>Time of each step</h1>"
        f"<p><b>{escape(slide.name)}</b>{phantom}, {slide.width:,} x {slide.height:,} pixels at "
        f"{slide.spacing_um:.3g} um/px, with <b>{escape(bundle.name)}</b>{builtin}: backbone "
        f"{escape(bundle.backbone)}, {escape(bundle.precision)}, patches of {bundle.patch_px} pixels, "
        f"stages at {', '.join(f'{um:g}' for um in bundle.stages_um.values())} um/px.</p>"
        f"<p>{escape(machine.cpu)}, {cores}{memory}{gpus}{kernel}. hagmil {escape(report.hagmil)}, "
        f"{report.created:%Y-%m-%d %H:%M} UTC.</p></header>"
    )


def _cards(report: BenchReport) -> str:
    run = report.end_to_end
    cards = (
        (shown(run.seconds, "s"), f"slide to results, {run.patches:,} patches, {run.provider}"),
        (shown(run.patches_per_s, "patches/s"), "end to end"),
        (shown(run.backbone_share, "share"), "of that time in the backbone"),
        (shown(report.read.patches_per_s, "patches/s"), f"reading alone, {_threads(report.read.threads)}"),
        (shown(report.start_up_s, "s"), "from process start to the first patch in the backbone"),
        (shown(report.peak_rss_mb, "MB"), f"peak memory, {report.memory.above_models_mb:,.0f} MB above the models"),
    )
    return '<div class="cards">' + "".join(_card(number, what) for number, what in cards) + "</div>"


def _card(number: str, what: str) -> str:
    value, _, unit = number.partition(" ")
    return (
        f'<div class="card"><div class="number">{value} <small>{unit}</small></div>'
        f'<div class="what">{escape(what)}</div></div>'
    )


def _end_to_end(report: BenchReport) -> str:
    runs = report.end_to_end_by_provider
    colours = step_colours(list(runs.values()))
    several = len(runs) > 1
    stacks = [
        Stack(name if several else "", run.steps_s, shown(run.seconds, "s") if several else "")
        for name, run in runs.items()
    ]
    steps = report.end_to_end.steps_s
    entries = [
        (f"{name}: {shown(seconds, 's')}, {report.end_to_end.shares[name]:.1%}", colours[name])
        for name, seconds in steps.items()
    ]
    stages = ", ".join(f"{stage.encoded:,} at stage {escape(stage.name)}" for stage in report.end_to_end.stages)
    return (
        f'<h2>One slide, end to end</h2><figure class="full"><figcaption>Seconds by step, {report.end_to_end.provider}'
        f"</figcaption>{stacks_svg('Seconds by step', stacks, colours)}{legend(entries, css=INLINE)}</figure>"
        f"<p>Patches in the backbone: {stages}.</p>"
    )


def _throughput(report: BenchReport) -> str:
    return (
        '<h2>Throughput</h2><figure class="full"><figcaption>Patches per second</figcaption>'
        f"{bars_svg('Patches per second', throughput_bars(report))}</figure>"
        "<p>The slower of reading and backbone limits both together. End to end also contains the mask, the stage "
        "models and writing the results.</p>"
    )


def _start_and_memory(report: BenchReport) -> str:
    start, memory = report.start_up, report.memory
    entries = [(f"{name}: {shown(seconds, 's')}", _START_UP_COLOURS[name]) for name, seconds in start.steps_s.items()]
    used = {"packages and models": memory.with_models_mb, "above them": memory.above_models_mb}
    kept = [(f"{name}: {shown(value, 'MB')}", _MEMORY_COLOURS[name]) for name, value in used.items()]
    start_up = stacks_svg("Start-up by step", [Stack("", start.steps_s)], _START_UP_COLOURS)
    peak = stacks_svg("Peak memory", [Stack("", used)], _MEMORY_COLOURS)
    return (
        '<h2>Start-up and memory of hagmil infer</h2><figure class="full"><figcaption>'
        f"Process start to first patch in the backbone, {shown(report.start_up_s, 's')}</figcaption>"
        f"{start_up}{legend(entries, css=INLINE)}</figure>"
        f'<figure class="full"><figcaption>Peak memory, {shown(memory.peak_rss_mb, "MB")}</figcaption>'
        f"{peak}{legend(kept, css=INLINE)}</figure>"
    )


def _sweeps(points: Sequence[SweepPoint]) -> str:
    if not points:
        return ""
    figures = []
    for what, (title, x_label) in _SWEEPS.items():
        series = list(dict.fromkeys((point.provider, point.series) for point in points if point.what == what))
        if not series:
            continue
        lines = [
            Line(
                ", ".join(filter(None, (name, provider))),
                [
                    (p.value, p.patches_per_s)
                    for p in points
                    if (p.what, p.provider, p.series) == (what, provider, name)
                ],
                index,
            )
            for index, (provider, name) in enumerate(series)
        ]
        figures.append(
            f"<figure><figcaption>{title}</figcaption>{lines_svg(title, x_label, 'patches/s', lines)}"
            f"{legend([(line.name, line.series) for line in lines], css=INLINE)}</figure>"
        )
    return f'<h2>Sweeps</h2><div class="plots">{"".join(figures)}</div>'


def _table(figures: Sequence[Figure]) -> str:
    rows, group = [], ""
    for figure in figures:
        if figure.group != group:
            group = figure.group
            rows.append(f'<tr class="group"><td colspan="3">{escape(group)}</td></tr>')
        runs = (
            ""
            if figure.low == figure.high
            else f"{shown(figure.low, figure.unit)} to {shown(figure.high, figure.unit)}"
        )
        rows.append(
            f'<tr><td>{escape(figure.name)}</td><td class="number">{shown(figure.value, figure.unit)}</td>'
            f'<td class="spread">{runs}</td></tr>'
        )
    return (
        '<h2>All measurements</h2><div class="wide"><table><thead><tr><th>measurement</th>'
        f'<th class="number">median run</th><th>all runs</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _facts(report: BenchReport) -> str:
    settings = report.settings
    facts = {
        "command": report.command,
        "settings": f"batch {settings.batch or 'chosen for the provider'}, reader threads "
        f"{settings.readers or 'chosen for the provider'}, models' threads "
        f"{settings.threads or 'all cores'}, keep {settings.keep or 'as in the bundle'}, "
        f"{settings.repeats} repeats",
        "engines": ", ".join(f"{name}: {each.engine}, batch {each.batch}" for name, each in report.backbone.items()),
        **{f"provider {name} skipped": why for name, why in report.skipped.items()},
        "slide": f"SHA-256 {report.slide.sha256}, {report.slide.bytes / 1e6:,.1f} MB, {report.slide.vendor}, "
        f"{report.slide.levels} levels, spacing from {report.slide.spacing_source}",
        "bundle": f"SHA-256 {report.bundle.sha256}",
        "mask": f"{report.mask.width:,} x {report.mask.height:,} pixels, {report.mask.tissue_share:.0%} tissue; "
        f"overview {shown(report.mask.overview_s, 's')}, tissue {shown(report.mask.segment_s, 's')}",
        "system": report.machine.system,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    rows = "".join(f"<tr><td>{name}</td><td><code>{escape(value)}</code></td></tr>" for name, value in facts.items())
    return f'<h2>Configuration</h2><div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _method(report: BenchReport) -> str:
    return (
        "<h2>How it was measured</h2><p>Each measurement runs once to warm up, then "
        f"{report.settings.repeats} times. The values are those of the run with the median time; the range over all "
        "runs is next to them. A measurement of 20 seconds or more runs once. Reading alone discards the patches; the "
        "backbone alone takes patches from memory; both together do the same work as a stage of the cascade. Stage "
        "models get bags of the slide's size with random features. Start-up and memory are those of "
        "<code>hagmil infer</code> in separate processes, with a warm disk cache and an empty compile cache of "
        "numba.</p>"
    )


def _threads(count: int) -> str:
    return f"{count} reader thread{'s' if count != 1 else ''}"


def write_report(folder: Path, report: BenchReport) -> None:
    """Write ``report.html``, then ``report.json``, into a folder.

    Args:
        folder: made if it is missing.
        report: the measurements.
    """
    write_text(folder / HTML_NAME, render_html(report))
    write_text(folder / JSON_NAME, report.model_dump_json(indent=2) + "\n")
