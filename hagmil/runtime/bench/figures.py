"""The report's numbers as a list: for its table, and to be held beside another report's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hagmil.runtime.bench.report import BenchReport

LEAST_GAIN = 1.05
"""Two figures that are nearer than this factor count as alike; of some there is one run only, which has no spread."""

Better = Literal["higher", "lower", "neither"]
Unit = Literal["patches/s", "s", "share", "MB"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a report.

    Args:
        group: the step that it belongs to.
        name: what it is, unique in its group.
        unit: of the value.
        value: the number; of the middle run where there were several.
        better: which way is good.
        low: the least of all runs; ``value`` where there was one.
        high: the most of all runs.
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
        first: of the first report; None where only the second has it.
        second: of the second.
    """

    first: Figure | None
    second: Figure | None

    @property
    def any(self) -> Figure:
        """One of the two, for what they have in common."""
        found = self.first or self.second
        if found is None:
            raise ValueError("a pair has at least one figure")
        return found

    @property
    def gain(self) -> float | None:
        """How many times better the second is; None where that cannot be said."""
        if self.first is None or self.second is None or self.first.better == "neither":
            return None
        one, other = self.first.value, self.second.value
        if min(one, other) <= 0:
            return None
        return other / one if self.first.better == "higher" else one / other

    @property
    def is_clear(self) -> bool:
        """Whether all runs of one report lie beyond all runs of the other, and by more than nothing to speak of."""
        if self.first is None or self.second is None:
            return False
        gain = self.gain
        differs = gain is not None and max(gain, 1 / gain) >= LEAST_GAIN
        return differs and (self.first.high < self.second.low or self.second.high < self.first.low)


def figures_of(report: BenchReport) -> tuple[Figure, ...]:
    """All numbers of a report, in the order in which a person would ask."""
    return tuple(_figures(report))


def pairs_of(first: BenchReport, second: BenchReport) -> tuple[Pair, ...]:
    """The figures of two reports beside one another: all that either has, the first's order leading."""
    one = {(figure.group, figure.name): figure for figure in figures_of(first)}
    other = {(figure.group, figure.name): figure for figure in figures_of(second)}
    return tuple(Pair(one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other]))


def differences(first: BenchReport, second: BenchReport) -> tuple[str, ...]:
    """What the two reports do not have in common, in words: figures of other work do not compare."""
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
        f"{what}: {_said(one, shown)} and {_said(other, other_shown)}"
        for what, one, other, shown, other_shown in facts
        if one != other
    )


def limiting_step(report: BenchReport) -> str:
    """In a sentence, what the pipeline waits for, with the fastest provider."""
    provider = report.end_to_end.provider
    reading, backbone = report.read.patches_per_s, report.backbone[provider].patches_per_s
    slow, fast, ratio = "The backbone", "reading", reading / backbone
    if reading < backbone:
        slow, fast, ratio = "Reading", "the backbone", backbone / reading
    times = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
    reached = report.pipeline[provider].of_slower
    return (
        f"{slow} sets the pace: {fast} alone is {times} times as fast. "
        f"Together they reach {reached:.0%} of the slower one."
    )


def shown(value: float, unit: Unit) -> str:
    """A number with its unit, for a person."""
    if unit == "share":
        return f"{value:.1%}"
    if unit == "s" and value < 1:
        return f"{_digits(value * 1000)} ms"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    """Three digits, or whole numbers from 100 on."""
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
        yield _plain(group, "of the slower alone", "share", pipeline.of_slower, "higher")
        yield _plain(group, "backbone's share", "share", pipeline.backbone_share, "higher")
        yield _plain(group, "backbone waited for patches", "s", pipeline.backbone_waited_s, "lower")
        if pipeline.readers_waited_s is not None:
            yield _plain(group, "readers waited for buffers, all threads", "s", pipeline.readers_waited_s, "neither")
    for provider, models in report.models.items():
        for model in models:
            name = f"{model.stage}, {model.patches:,} patches"
            yield _seconds(f"level models, {provider}", name, model.seconds, model.repeats_s)
    yield _seconds("start-up", "process start to first patch", report.start_up_s, report.start_up.repeats_s)
    yield _plain("memory", "peak", "MB", report.memory.peak_rss_mb, "lower")
    yield _plain("memory", "with models loaded", "MB", report.memory.with_models_mb, "lower")
    yield _plain("memory", "above the models' own", "MB", report.memory.above_models_mb, "lower")


def _seconds(group: str, name: str, value: float, repeats_s: Sequence[float]) -> Figure:
    return Figure(group, name, "s", value, "lower", min(repeats_s), max(repeats_s))


def _rate(group: str, name: str, patches: int, seconds: float, repeats_s: Sequence[float]) -> Figure:
    slow, fast = patches / max(repeats_s), patches / min(repeats_s)
    return Figure(group, name, "patches/s", patches / seconds, "higher", slow, fast)


def _plain(group: str, name: str, unit: Unit, value: float, better: Better) -> Figure:
    return Figure(group, name, unit, value, better, value, value)


def _said(value: object, shown_as: str | None) -> str:
    if shown_as is None:
        return str(value)
    return f"{shown_as} ({value[:12]})" if isinstance(value, str) else shown_as
