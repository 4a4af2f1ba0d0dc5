"""Parity of verdicts: slides taken through a cascade twice, with a bundle's source and with its graphs.

1. Whoever runs slides gives, for each, the verdict and every stage's patches, scores and choice.
2. Verdicts are equal where both ways name the same class; a slide that fails, fails both ways with the same code.
3. Kept patches agree where both ways kept the same square of the slide: the share of the source's that the graphs kept.
4. Attention is compared by rank (Spearman, ties share their mean rank), over the patches that both ways read.
5. A verdict that differs, or a stage whose kept patches agree by less than :data:`MIN_KEPT_AGREEMENT`, ends the export.

The arithmetic is here; slides are read elsewhere.
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
"""By precision, the share of kept patches that must agree in each stage, over all slides together."""


@dataclass(frozen=True, slots=True)
class ModelSessions:
    """One way of running a bundle's models.

    Args:
        backbone: session of the patch encoder.
        stages: session of each stage's model, coarse to fine.
    """

    backbone: Session
    stages: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What one stage did on one slide.

    Args:
        name: the stage's name.
        coords: int64 (patches, 2), level-0 corners of the patches that it read.
        attention: float32 (patches,), their scores.
        kept: int64 (kept,), rows of ``coords`` that it kept; empty on the last stage.
    """

    name: str
    coords: NDArray[np.int64]
    attention: NDArray[np.float32]
    kept: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """What one way of running made of one slide.

    Args:
        slide_id: the slide.
        prediction: its verdict; None where it has none.
        probabilities: of every class; empty where it has no verdict.
        code: why it has none.
        stages: coarse to fine; empty where it has no verdict.
    """

    slide_id: str
    prediction: str | None
    probabilities: dict[str, float]
    code: str | None
    stages: tuple[StageRecord, ...]


class SlideRunner(Protocol):
    """Somebody who takes slides through a cascade."""

    @property
    def what(self) -> str:
        """The slides, in words."""

    def run(self, manifest: Manifest, sessions: ModelSessions, words: str) -> Sequence[SlideRecord]:
        """Take every slide through a bundle's cascade.

        Args:
            manifest: what the bundle says of itself.
            sessions: what runs its models.
            words: what this is, for progress.
        """


class StageAgreement(FrozenModel):
    """How far one stage's choices are the same."""

    name: str
    kept: int = Field(description="patches that the source kept, over all slides")
    chosen_on: int = Field(description="slides on which there were more patches than could be kept")
    kept_alike: float | None = Field(description="share of them that the graphs kept too; null where none are kept")
    least_alike: float | None = Field(description="the same on the slide where it is smallest")
    read_alike: float = Field(description="share of the patches that the source read that the graphs read too")
    least_correlation: float | None = Field(description="smallest rank correlation of attention on a slide")
    mean_correlation: float | None


class SlideParity(FrozenModel):
    """Verdicts of a bundle's graphs held against its source's."""

    what: str = Field(description="the slides, in words")
    rounded: bool = Field(description="every operation of the graphs was rounded to 16 bits")
    slides: int
    with_verdict: int = Field(description="slides that have a verdict from the source")
    equal_verdicts: int
    different: tuple[str, ...] = Field(description="slides whose verdicts differ")
    largest_change: float = Field(description="of any class's probability on any slide")
    least_margin: float | None = Field(description="smallest lead of a verdict over the next class")
    stages: tuple[StageAgreement, ...]


def compare_slides(
    source: Sequence[SlideRecord], graphs: Sequence[SlideRecord], *, what: str, rounded: bool
) -> SlideParity:
    """Hold verdicts against verdicts.

    Args:
        source: what the models that were exported made of the slides.
        graphs: what the bundle's graphs made of the same slides, in the same order.
        what: the slides, in words.
        rounded: whether the graphs' every operation was rounded to 16 bits.

    Raises:
        ParityError: there is no slide with a verdict; nothing could be compared.
    """
    pairs = list(zip(source, graphs, strict=True))
    with_verdict = [(one, other) for one, other in pairs if one.prediction is not None]
    if not with_verdict:
        codes = ", ".join(sorted({run.code or "unknown" for run in source})) or "there was none"
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
    """Step 5.

    Args:
        parity: what was found.
        precision: of the graphs; it decides how many kept patches must agree.

    Raises:
        ParityError: what differs, and where.
    """
    if parity.different:
        names = ", ".join(parity.different[:5]) + (", ..." if len(parity.different) > 5 else "")
        raise ParityError(
            f"verdicts: {len(parity.different)} of {parity.slides} slides end otherwise than with the models that were "
            f"exported ({names}); probabilities change by up to {parity.largest_change:.3g}; nothing was written"
        )
    least = MIN_KEPT_AGREEMENT[precision]
    for stage in parity.stages:
        if stage.kept_alike is not None and stage.kept_alike < least:
            raise ParityError(
                f"verdicts: stage {stage.name} keeps other patches than the model that was exported: "
                f"{stage.kept_alike:.2%} of {stage.kept} agree, {least:.0%} must; nothing was written"
            )


def rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Spearman's rank correlation; None where either has fewer than two values or all are the same."""
    if len(one) < 2:
        return None
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else None


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks


def _margin(run: SlideRecord) -> float:
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
    """How many rows of ``one`` (n, 2) are in ``other`` (m, 2) too, and how many rows it has."""
    present = set(map(tuple, other.tolist()))
    return sum(tuple(row) in present for row in one.tolist()), len(one)


def _attention_correlation(one: StageRecord, other: StageRecord) -> float | None:
    """Step 4."""
    places = {tuple(row): place for place, row in enumerate(other.coords.tolist())}
    pairs = [(row, places[tuple(at)]) for row, at in enumerate(one.coords.tolist()) if tuple(at) in places]
    rows = np.array(pairs, np.int64).reshape(-1, 2)  # (patches that both read, 2)
    return rank_correlation(one.attention[rows[:, 0]], other.attention[rows[:, 1]])
