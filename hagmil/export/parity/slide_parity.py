"""Comparison of verdicts on slides: the cascade runs with the source models and with the graphs of the bundle.

1. A slide runner returns, for each slide, the verdict and every stage's patches, attention and kept patches.
2. Verdicts are equal if both runs predict the same class. A slide that fails must fail in both with the same code.
3. Agreement of kept patches is the share of the source's kept patches that the graphs keep too, by their coordinates.
4. Attention is compared by Spearman's rank correlation (ties get their mean rank), over patches that both runs read.
5. A different verdict, or a stage whose kept patches agree by less than :data:`MIN_KEPT_AGREEMENT`, stops the export.

This module reads no slides; see :mod:`hagmil.workflows.slide_runner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hagmil._models import FrozenModel
from hagmil.bundle import Manifest, Precision
from hagmil.errors import ParityError
from hagmil.runtime.sessions import Session

MIN_KEPT_AGREEMENT: dict[Precision, float] = {"fp32": 0.99, "fp16": 0.99, "int8": 0.90}
"""Minimum agreement of kept patches in each stage, over all slides together, by precision."""


@dataclass(frozen=True, slots=True)
class ModelSessions:
    """Sessions of the models of a bundle.

    Args:
        backbone: session of the patch encoder.
        stages: sessions of the stage models, coarse to fine.
    """

    backbone: Session
    stages: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """The patches of one stage on one slide.

    Args:
        name: name of the stage.
        coords: int64 (patches, 2), level-0 top-left (x, y) of the patches that were read.
        attention: float32 (patches,), their attention scores.
        kept: int64 (kept,), indices into ``coords`` of the kept patches; empty for the last stage.
    """

    name: str
    coords: NDArray[np.int64]
    attention: NDArray[np.float32]
    kept: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """The result of one run on one slide.

    Args:
        slide_id: the slide.
        prediction: the predicted class; None if the slide failed.
        probabilities: probability of every class; empty if the slide failed.
        code: error code if the slide failed, else None.
        stages: coarse to fine; empty if the slide failed.
    """

    slide_id: str
    prediction: str | None
    probabilities: dict[str, float]
    code: str | None
    stages: tuple[StageRecord, ...]


class SlideRunner(Protocol):
    """Runs a cascade on a set of slides."""

    @property
    def what(self) -> str:
        """Description of the slides."""

    def run(self, manifest: Manifest, sessions: ModelSessions, words: str) -> Sequence[SlideRecord]:
        """Run the cascade on every slide.

        Args:
            manifest: manifest of the bundle.
            sessions: sessions of its models.
            words: label for progress.
        """


class StageAgreement(FrozenModel):
    """Agreement of the kept patches of one stage."""

    name: str
    kept: int = Field(description="patches kept by the source, over all slides")
    chosen_on: int = Field(description="slides with more patches than the stage keeps")
    kept_alike: float | None = Field(description="share of them that the graphs kept too; null if none are kept")
    least_alike: float | None = Field(description="smallest such share on a slide")
    read_alike: float = Field(description="share of the patches read by the source that the graphs read too")
    least_correlation: float | None = Field(description="smallest rank correlation of attention on a slide")
    mean_correlation: float | None


class SlideParity(FrozenModel):
    """Comparison of the verdicts of a bundle's graphs with those of their source."""

    what: str = Field(description="description of the slides")
    rounded: bool = Field(description="every operation of the graphs was rounded to 16 bits")
    slides: int
    with_verdict: int = Field(description="slides with a verdict from the source")
    equal_verdicts: int
    different: tuple[str, ...] = Field(description="slides whose verdicts differ")
    largest_change: float = Field(description="largest change of a probability, over classes and slides")
    least_margin: float | None = Field(
        description="smallest difference between the two highest probabilities of a slide"
    )
    stages: tuple[StageAgreement, ...]


def compare_slides(
    source: Sequence[SlideRecord], graphs: Sequence[SlideRecord], *, what: str, rounded: bool
) -> SlideParity:
    """Compare two runs on the same slides (steps 2 to 4).

    Args:
        source: results of the models that were exported.
        graphs: results of the bundle's graphs on the same slides, in the same order.
        what: description of the slides.
        rounded: whether every operation of the graphs was rounded to 16 bits.

    Raises:
        ParityError: no slide has a verdict.
    """
    pairs = list(zip(source, graphs, strict=True))
    with_verdict = [(one, other) for one, other in pairs if one.prediction is not None]
    if not with_verdict:
        codes = ", ".join(sorted({run.code or "unknown" for run in source})) or "no slides"
        raise ParityError(f"verdicts: no slide of {what} has a verdict to compare ({codes})")
    both = [(one, other) for one, other in with_verdict if other.prediction is not None]
    different = tuple(
        one.slide_id for one, other in pairs if (one.prediction, one.code) != (other.prediction, other.code)
    )
    changes = [
        abs(value - other.probabilities[name]) for one, other in both for name, value in one.probabilities.items()
    ]
    return SlideParity(
        what=what,
        rounded=rounded,
        slides=len(pairs),
        with_verdict=len(with_verdict),
        equal_verdicts=sum(one.prediction == other.prediction for one, other in with_verdict),
        different=different,
        largest_change=max(changes, default=0.0),
        least_margin=min(_margin(one) for one, _ in with_verdict),
        stages=tuple(
            _agreement([(one.stages[place], other.stages[place]) for one, other in both])
            for place in range(len(with_verdict[0][0].stages) if both else 0)
        ),
    )


def enforce_slide_parity(parity: SlideParity, precision: Precision = "fp32") -> None:
    """Raise an error if verdicts or kept patches differ (step 5).

    Args:
        parity: the comparison.
        precision: of the graphs; selects the minimum agreement of kept patches.

    Raises:
        ParityError: verdicts differ, or the kept patches of a stage agree too little.
    """
    if parity.different:
        names = ", ".join(parity.different[:5]) + (", ..." if len(parity.different) > 5 else "")
        raise ParityError(
            f"verdicts: {len(parity.different)} of {parity.slides} slides have another verdict than with the exported "
            f"models ({names}); probabilities change by up to {parity.largest_change:.3g}; nothing was written"
        )
    least = MIN_KEPT_AGREEMENT[precision]
    for stage in parity.stages:
        if stage.kept_alike is not None and stage.kept_alike < least:
            raise ParityError(
                f"verdicts: stage {stage.name} keeps other patches than the exported model: "
                f"{stage.kept_alike:.2%} of {stage.kept} agree, at least {least:.0%} must; nothing was written"
            )


def rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Return Spearman's rank correlation; None for fewer than two values, or if all values of a side are equal."""
    if len(one) < 2:
        return None
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else None


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks from 0; equal values get their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks


def _margin(run: SlideRecord) -> float:
    """Difference between the two highest probabilities."""
    first, second = sorted(run.probabilities.values(), reverse=True)[:2]
    return first - second


def _agreement(pairs: Sequence[tuple[StageRecord, StageRecord]]) -> StageAgreement:
    """Steps 3 and 4 for one stage."""
    kept = [_common(one.coords[one.kept], other.coords[other.kept]) for one, other in pairs if len(one.kept)]
    read = [_common(one.coords, other.coords) for one, other in pairs]
    ranked = [_attention_correlation(one, other) for one, other in pairs]
    correlations = [value for value in ranked if value is not None]
    total = sum(count for _, count in kept)
    return StageAgreement(
        name=pairs[0][0].name,
        kept=total,
        chosen_on=sum(0 < len(one.kept) < len(one.coords) for one, _ in pairs),
        kept_alike=sum(alike for alike, _ in kept) / total if kept else None,
        least_alike=min((alike / count for alike, count in kept), default=None),
        read_alike=sum(alike for alike, _ in read) / sum(count for _, count in read),
        least_correlation=min(correlations, default=None),
        mean_correlation=float(np.mean(correlations)) if correlations else None,
    )


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many rows of ``one`` (n, 2) are in ``other`` (m, 2) too, and n."""
    present = set(map(tuple, other.tolist()))
    return sum(tuple(row) in present for row in one.tolist()), len(one)


def _attention_correlation(one: StageRecord, other: StageRecord) -> float | None:
    """Step 4."""
    places = {tuple(row): place for place, row in enumerate(other.coords.tolist())}
    pairs = [(row, places[tuple(at)]) for row, at in enumerate(one.coords.tolist()) if tuple(at) in places]
    rows = np.array(pairs, np.int64).reshape(-1, 2)  # (patches in both, 2)
    return rank_correlation(one.attention[rows[:, 0]], other.attention[rows[:, 1]])
