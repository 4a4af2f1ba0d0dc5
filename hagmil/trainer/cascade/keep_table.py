"""The manifest section ``tested``: verdicts by number of kept patches and by slide size.

1. Ranges of slide sizes begin at the smallest slide; each range reaches up to :data:`SIZE_RATIO` times its beginning.
   A cohort of slides of similar size therefore has one range.
2. A verdict agrees if it is that of all patches of the same slide.
3. The verdicts hold from a number of kept patches on if every verdict with this number and with every larger tested one
   agrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle.tested import Tested, TestedKeep, TestedSize
from hagmil.errors import DataError, UsageError
from hagmil.softmax import softmax
from hagmil.spec import Kind
from hagmil.trainer.cascade.readings import SlideReadings
from hagmil.trainer.data.labels import Part
from hagmil.trainer.metrics.resampled import measure

SIZE_RATIO = 4
"""Ratio of the ends of a range of slide sizes, in patches of the coarsest stage."""


def parse_keeps(text: str) -> tuple[int, ...]:
    """Parse numbers of kept patches, such as ``4,8,16,all``; ``all`` is always tested and may be left out.

    Raises:
        UsageError: an item is neither a number from 1 nor ``all``, or there is no number.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    bad = [item for item in items if item != "all" and not (item.isdecimal() and int(item) >= 1)]
    keeps = tuple(sorted({int(item) for item in items if item != "all"})) if not bad else ()
    if not keeps:
        raise UsageError(f'"--keeps {text}" must be numbers of kept patches from 1, such as 4,8,16,all')
    return keeps


def check_keeps(kind: Kind, stages: int) -> None:
    """Raise an error unless verdicts of a model depend on the number of kept patches.

    Args:
        kind: kind of the model, for the message.
        stages: number of stages.

    Raises:
        UsageError: the model has a single stage.
    """
    if stages < 2:
        raise UsageError(
            f"the model of kind {kind} has a single stage, which reads all patches; leave out --keeps and --risk"
        )


def tabulate_keeps(
    slides: Sequence[SlideReadings],
    keeps: Sequence[int],
    classes: Sequence[str],
    part: Part,
    *,
    temperature: float | None = None,
) -> Tested:
    """Tabulate the verdicts of slides by number of kept patches and by slide size.

    Args:
        slides: readings with these numbers of kept patches and with all patches.
        keeps: numbers of kept patches, in ascending order.
        classes: names in the order of the logits.
        part: part of the split that the slides are from.
        temperature: divisor of the logits for the AUC; None means 1.

    Raises:
        DataError: there is no slide.
    """
    if not slides:
        raise DataError(f"there is no slide with tissue in the {part} part to test numbers of kept patches on")

    def rows(group: Sequence[SlideReadings]) -> tuple[TestedKeep, ...]:
        return tuple(_row(group, keep, classes, temperature) for keep in (*keeps, None))

    ranges = _ranges(slides)
    sizes = [slide.coarse_patches for slide in slides]
    return Tested(
        part=part,
        slides=len(slides),
        smallest_bag=min(sizes),
        largest_bag=max(sizes),
        keeps=rows(slides),
        sizes=tuple(
            TestedSize(
                smallest_bag=min(slide.coarse_patches for slide in group),
                largest_bag=max(slide.coarse_patches for slide in group),
                keeps=rows(group),
            )
            for group in ranges
            if len(ranges) > 1
        ),
        held_from=held_from(slides, keeps),
    )


def held_from(slides: Sequence[SlideReadings], keeps: Sequence[int]) -> int | None:
    """Return the smallest tested number of kept patches from which on the verdicts hold (step 3); None without one.

    Args:
        slides: readings with these numbers of kept patches and with all patches.
        keeps: numbers of kept patches, in ascending order.
    """
    found = None
    for keep in reversed(keeps):
        if not all(_agrees(slide, keep) for slide in slides):
            break
        found = keep
    return found


def _ranges(slides: Sequence[SlideReadings]) -> list[list[SlideReadings]]:
    """Step 1: the slides of each range of sizes that has slides, small to large."""
    smallest = min(slide.coarse_patches for slide in slides)
    groups: dict[int, list[SlideReadings]] = {}
    for slide in slides:
        groups.setdefault(_range_of(slide.coarse_patches, smallest), []).append(slide)
    return [groups[index] for index in sorted(groups)]


def _range_of(size: int, smallest: int) -> int:
    index, end = 0, smallest * SIZE_RATIO
    while size >= end:
        index, end = index + 1, end * SIZE_RATIO
    return index


def _row(
    slides: Sequence[SlideReadings], keep: int | None, classes: Sequence[str], temperature: float | None
) -> TestedKeep:
    labels = np.array([slide.label for slide in slides], np.int64)
    logits = np.stack([slide.by_keep[keep].logits for slide in slides]).astype(np.float64)  # (slides, classes)
    measures = measure(softmax(logits, temperature), labels)
    auc = float(measures.auc[0])
    return TestedKeep(
        keep=keep,
        slides=len(slides),
        right=float((logits.argmax(axis=1) == labels).mean()),
        auc=None if math.isnan(auc) else auc,
        agreement=float(np.mean([_agrees(slide, keep) for slide in slides])),
        patches_read=float(np.mean([slide.by_keep[keep].patches_read for slide in slides])),
        margins={name: _median_margin(logits, labels, index) for index, name in enumerate(classes)},
    )


def _agrees(slide: SlideReadings, keep: int | None) -> bool:
    """Step 2."""
    return int(slide.by_keep[keep].logits.argmax()) == int(slide.by_keep[None].logits.argmax())


def _median_margin(logits: NDArray[np.float64], labels: NDArray[np.int64], index: int) -> float | None:
    """Median, over the slides of a class, of its logit minus the highest other logit; None without a slide."""
    own = logits[labels == index]
    if not len(own):
        return None
    others = np.delete(own, index, axis=1)
    return float(np.median(own[:, index] - others.max(axis=1)))
