"""The report's numbers as a list, for its table and for comparing two reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hagmil.runtime.bench.report import BenchReport

LEAST_GAIN = 1.05
"""Two figures whose ratio is below this count as equal: figures of a single run have no range to compare."""

Better = Literal["higher", "lower", "neither"]
Unit = Literal["patches/s", "s", "share", "MB"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a report.

    Args:
        group: the measurement that it belongs to.
        name: unique in its group.
        unit: of the value.
        value: the number; with several runs, that of the run with the median time.
        better: whether higher or lower values are better.
        low: minimum over all runs; ``value`` where there was only one.
        high: maximum over all runs.
    """

    group: str
    name: str
    unit: Unit
    value: float
    better: Better
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The same figure of two reports.

    Args:
        first: from the first report; None if missing there.
        second: from the second report; None if missing there.
    """

    first: Figure | None
    second: Figure | None

    @property
    def any(self) -> Figure:
        """The figure of either report, for its group, name and unit."""
        found = self.first or self.second
        if found is None:
            raise ValueError("a pair has at least one figure")
        return found

    @property
    def gain(self) -> float | None:
        """Factor by which the second figure is better; None where it is undefined."""
        if self.first is None or self.second is None or self.first.better == "neither":
            return None
        one, other = self.first.value, self.second.value
        if min(one, other) <= 0:
            return None
        return other / one if self.first.better == "higher" else one / other

    @property
    def is_clear(self) -> bool:
        """Whether the ranges of all runs do not overlap and the gain or loss is at least :data:`LEAST_GAIN`."""
        if self.first is None or self.second is None:
            return False
        gain = self.gain
        differs = gain is not None and max(gain, 1 / gain) >= LEAST_GAIN
        return differs and (self.first.high < self.second.low or self.second.high < self.first.low)


def figures_of(report: BenchReport) -> tuple[Figure, ...]:
    """Return all numbers of a report, the most important first."""
    return tuple(_figures(report))


def pairs_of(first: BenchReport, second: BenchReport) -> tuple[Pair, ...]:
    """Pair the figures of two reports, in the order of the first; figures that only the second has come last."""
    one = {(figure.group, figure.name): figure for figure in figures_of(first)}
    other = {(figure.group, figure.name): figure for figure in figures_of(second)}
    return tuple(Pair(one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other]))


def differences(first: BenchReport, second: BenchReport) -> tuple[str, ...]:
    """Describe in what slide, bundle, machine, settings and version two reports differ.

    Figures are comparable only where the work was the same.
    """
    facts = (
        ("slide", first.slide.sha256, second.slide.sha256, first.slide.name, second.slide.name),
        ("spacing", first.slide.spacing_um, second.slide.spacing_um, None, None),
        ("bundle", first.bundle.sha256, second.bundle.sha256, first.bundle.name, second.bundle.name),
        ("machine", first.machine, second.machine, first.machine.cpu, second.machine.cpu),
        ("batch", first.settings.batch, second.settings.batch, None, None),
        ("readers", first.read.threads, second.read.threads, None, None),
        ("threads", first.settings.threads, second.settings.threads, None, None),
        ("mask device", first.settings.mask_device, second.settings.mask_device, None, None),
        ("keep", first.settings.keep, second.settings.keep, None, None),
        ("patches read", first.read.patches, second.read.patches, None, None),
        ("hagmil", first.hagmil, second.hagmil, None, None),
    )
    return tuple(
        f"{what}: {_describe(one, shown_as)} and {_describe(other, other_shown_as)}"
        for what, one, other, shown_as, other_shown_as in facts
        if one != other
    )


def limiting_step(report: BenchReport) -> str:
    """Say which step takes most of the time of the fastest provider, and which limits its pipeline."""
    run = report.end_to_end
    longest = max(run.shares, key=run.shares.__getitem__)
    pipeline = report.pipeline[run.provider]
    reading, backbone = pipeline.reading_per_s or report.read.patches_per_s, report.backbone[run.provider].patches_per_s
    slow, fast, ratio = "the backbone", "reading", reading / backbone
    if reading < backbone:
        slow, fast, ratio = "reading", "the backbone", backbone / reading
    times = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
    reached = (
        f"reach {pipeline.of_slower:.0%} of its throughput" if pipeline.of_slower < 1 else "are as fast as it alone"
    )
    return (
        f'From slide to results on {run.provider}, the longest step is "{longest}": {run.shares[longest]:.0%} of '
        f"{shown(run.seconds, 's')}. Of reading and the backbone, {slow} is slower: {fast} alone is {times} times as "
        f"fast. Both together {reached}."
    )


def shown(value: float, unit: Unit) -> str:
    """Format a number with its unit."""
    if unit == "share":
        return f"{value:.1%}"
    if unit == "s" and value < 1:
        return f"{_digits(value * 1000)} ms"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    """Format a number with three significant digits; from 100 on, as a whole number."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _figures(report: BenchReport) -> Iterator[Figure]:
    run = report.end_to_end
    yield _seconds("end to end", "slide to results", run.seconds, run.repeats_s)
    yield _rate("end to end", "patches", run.patches, run.seconds, run.repeats_s)
    yield _plain("end to end", "backbone's share", "share", run.backbone_share, "higher")
    yield _plain("end to end", "backbone waited for patches", "s", run.backbone_waited_s, "lower")
    yield _rate("reading alone", "patches", report.read.patches, report.read.seconds, report.read.repeats_s)
    yield _seconds("mask", "overview and tissue", report.mask.seconds, report.mask.repeats_s)
    for provider, backbone in report.backbone.items():
        group = f"backbone alone, {provider}"
        yield _rate(group, "patches", backbone.patches, backbone.seconds, backbone.repeats_s)
        yield _plain(group, "loading the bundle", "s", backbone.load_s, "lower")
    for provider, pipeline in report.pipeline.items():
        group = f"reading and backbone, {provider}"
        yield _rate(group, "patches", pipeline.patches, pipeline.seconds, pipeline.repeats_s)
        yield _plain(group, "of the slower one alone", "share", pipeline.of_slower, "higher")
        yield _plain(group, "backbone's share", "share", pipeline.backbone_share, "higher")
        yield _plain(group, "backbone waited for patches", "s", pipeline.backbone_waited_s, "lower")
        if pipeline.readers_waited_s is not None:
            yield _plain(group, "readers waited for buffers, all threads", "s", pipeline.readers_waited_s, "neither")
    for provider, models in report.models.items():
        for model in models:
            name = f"{model.stage}, {model.patches:,} patches"
            yield _seconds(f"stage models, {provider}", name, model.seconds, model.repeats_s)
    yield _seconds("start-up", "process start to first patch", report.start_up_s, report.start_up.repeats_s)
    yield _plain("memory", "peak", "MB", report.memory.peak_rss_mb, "lower")
    yield _plain("memory", "with models loaded", "MB", report.memory.with_models_mb, "lower")
    yield _plain("memory", "above loaded models", "MB", report.memory.above_models_mb, "lower")


def _seconds(group: str, name: str, value: float, repeats_s: Sequence[float]) -> Figure:
    return Figure(group, name, "s", value, "lower", min(repeats_s), max(repeats_s))


def _rate(group: str, name: str, patches: int, seconds: float, repeats_s: Sequence[float]) -> Figure:
    slow, fast = patches / max(repeats_s), patches / min(repeats_s)
    return Figure(group, name, "patches/s", patches / seconds, "higher", slow, fast)


def _plain(group: str, name: str, unit: Unit, value: float, better: Better) -> Figure:
    return Figure(group, name, unit, value, better, value, value)


def _describe(value: object, shown_as: str | None) -> str:
    if shown_as is None:
        return str(value)
    return f"{shown_as} ({value[:12]})" if isinstance(value, str) else shown_as
