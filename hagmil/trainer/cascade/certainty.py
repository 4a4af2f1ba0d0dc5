"""The manifest section ``certainty``: the threshold from which the adaptive cascade calls a verdict sure.

The rule is that of :mod:`hagmil.bundle.adaptive`; each slide gives the readings that the cascade would take from it.

1. Heuristic: the threshold is a quantile of the margins of all pairs of successive readings of all slides.
2. Conformal risk control (Angelopoulos et al. 2024, theorem 1): the loss of a slide is 1 if its verdict is sure and
   wrong, otherwise 0. A higher threshold stops the cascade later, possibly at a wrong verdict, so the loss is replaced
   by its largest value over this and all higher thresholds. It is then 1 below the slide's critical threshold and 0
   from there on. The threshold is the smallest at which (losses + 1)/(slides + 1) is at most the risk. The expected
   share of sure and wrong verdicts on exchangeable slides is then at most the risk.
3. A pair of readings is where the cascade stops for some threshold if its margin exceeds all earlier margins. The
   critical threshold of a slide is the largest margin of these pairs whose verdict is wrong, or 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hagmil.bundle.adaptive import Reading, pair_margin, read_until_sure
from hagmil.bundle.tested import TOP_ROWS, Certainty
from hagmil.errors import DataError, UsageError
from hagmil.trainer.cascade.readings import SlideReadings, limited_ladder

QUANTILE = 0.10
"""Quantile of the margins that the heuristic uses."""
_ROUNDING = 1e-9


def check_risk(risk: float) -> None:
    """Raise an error unless a risk is between 0 and 1.

    Raises:
        UsageError: it is not.
    """
    if not 0 < risk < 1:
        raise UsageError(f"--risk is {risk:g}; it must be above 0 and below 1, such as 0.05")


def calibrate_certainty(slides: Sequence[SlideReadings], *, risk: float | None = None) -> Certainty:
    """Choose the threshold on labelled slides.

    Args:
        slides: readings with the numbers of kept patches of :data:`hagmil.bundle.adaptive.KEEPS` and their
            ``top_logits``.
        risk: largest expected share of sure and wrong verdicts; None for the heuristic.

    Raises:
        DataError: there is no slide.
        UsageError: there are too few slides for the risk.
    """
    if not slides:
        raise DataError("there is no slide with tissue to calibrate the certainty of verdicts on")
    keeps = limited_ladder(slides)
    ladders = [slide.ladder(keeps) for slide in slides]
    labels = [slide.label for slide in slides]
    threshold = _quantile(ladders) if risk is None else risk_threshold(ladders, labels, risk)
    outcomes = [read_until_sure(ladder, threshold) for ladder in ladders]
    right = [
        int(outcome.readings[-1].logits.argmax()) == label
        for outcome, label in zip(outcomes, labels, strict=True)
        if outcome.sure
    ]
    sizes = [slide.coarse_patches for slide in slides]
    return Certainty(
        threshold=threshold,
        method="quantile" if risk is None else "risk",
        level=QUANTILE if risk is None else risk,
        keeps=keeps,
        top_rows=TOP_ROWS,
        slides=len(slides),
        smallest_bag=min(sizes),
        largest_bag=max(sizes),
        unsure=1 - len(right) / len(slides),
        sure_right=float(np.mean(right)) if right else None,
    )


def risk_threshold(ladders: Sequence[Sequence[Reading]], labels: Sequence[int], risk: float) -> float:
    """Choose the threshold by conformal risk control (step 2).

    Args:
        ladders: readings of each slide, in the order in which they are taken.
        labels: index of the class of each slide.
        risk: largest expected share of sure and wrong verdicts.

    Raises:
        UsageError: there are too few slides for the risk.
    """
    least = math.ceil(1 / risk - _ROUNDING) - 1
    if len(ladders) < least:
        raise UsageError(
            f"--risk {risk:g} needs at least {least} validation slides with tissue, but there are {len(ladders)}; add "
            "slides, allow a higher risk, or leave out --risk for the heuristic threshold"
        )
    allowed = math.floor(risk * (len(ladders) + 1) + _ROUNDING) - 1  # slides with a loss of 1
    critical = [_critical_threshold(ladder, label) for ladder, label in zip(ladders, labels, strict=True)]
    return sorted([*critical, 0.0], reverse=True)[allowed]


def _quantile(ladders: Sequence[Sequence[Reading]]) -> float:
    """Step 1."""
    return float(np.quantile([pair_margin(*pair) for ladder in ladders for pair in pairwise(ladder)], QUANTILE))


def _critical_threshold(ladder: Sequence[Reading], label: int) -> float:
    """Step 3."""
    highest = critical = 0.0
    for before, after in pairwise(ladder):
        margin = pair_margin(before, after)
        if margin > highest:
            highest = margin
            if int(after.logits.argmax()) != label:
                critical = margin
    return critical
