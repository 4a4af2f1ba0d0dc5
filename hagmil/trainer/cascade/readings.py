"""The verdicts of one slide with several numbers of kept patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle.adaptive import KEEPS, Reading, top_rows
from hagmil.bundle.tested import TOP_ROWS
from hagmil.spec import ATTENTION, LOGITS
from hagmil.trainer.cascade.slide_cascade import CascadeRun, SlideCascade


@dataclass(frozen=True, slots=True)
class KeepReading:
    """The verdict of one slide with one number of kept patches.

    Args:
        logits: (classes,), of the whole bag of the last stage, before the temperature.
        top_logits: (classes,), of its rows with the highest attention as a bag of their own; None if not computed.
        patches_read: patches of all stages.
    """

    logits: NDArray[np.float32]
    top_logits: NDArray[np.float32] | None
    patches_read: int


@dataclass(frozen=True, slots=True)
class SlideReadings:
    """The verdicts of one slide with several numbers of kept patches.

    Args:
        slide_id: name of the slide.
        label: index of its class.
        coarse_patches: patches of the coarsest stage.
        most_kept: the smallest number of kept patches with which every patch is read.
        by_keep: by the number of kept patches; None stands for all patches.
    """

    slide_id: str
    label: int
    coarse_patches: int
    most_kept: int
    by_keep: dict[int | None, KeepReading]

    def ladder(self, keeps: Sequence[int]) -> tuple[Reading, ...]:
        """Return the readings that the adaptive cascade takes from this slide if no verdict is sure.

        It ends after the second number with which every patch is read, as in deployment.

        Args:
            keeps: numbers of kept patches in ascending order; their readings have ``top_logits``.
        """
        found = []
        for keep in keeps[: _useful(keeps, self.most_kept)]:
            reading = self.by_keep[keep]
            assert reading.top_logits is not None  # computed for all readings or for none
            found.append(Reading(keep, reading.patches_read, reading.logits, reading.top_logits))
        return tuple(found)


def read_slide(cascade: SlideCascade, keeps: Sequence[int], *, with_top: bool = False) -> SlideReadings:
    """Run the cascade on one slide with all patches and with several numbers of kept patches.

    Numbers with which every patch is read share one run.

    Args:
        cascade: the cascade of the slide.
        keeps: numbers of kept patches.
        with_top: compute ``top_logits`` too.

    Raises:
        DataError: features are not finite.
        BundleError: outputs of a model are not finite.
    """

    def read(keep: int | None) -> KeepReading:
        return _reading(cascade, cascade.run([keep] * cascade.transitions), with_top=with_top)

    everything = read(None)
    by_keep: dict[int | None, KeepReading] = {
        keep: everything if keep >= cascade.most_kept else read(keep) for keep in sorted(set(keeps))
    }
    by_keep[None] = everything
    slide = cascade.slide
    return SlideReadings(slide.slide_id, slide.label, cascade.coarse_patches, cascade.most_kept, by_keep)


def limited_ladder(slides: Sequence[SlideReadings], keeps: Sequence[int] = KEEPS) -> tuple[int, ...]:
    """Return the numbers of kept patches that the adaptive cascade can use on some of the slides.

    Args:
        slides: at least one slide.
        keeps: in ascending order.

    Returns:
        At least the first two numbers.
    """
    return tuple(keeps[: _useful(keeps, max(slide.most_kept for slide in slides))])


def _useful(keeps: Sequence[int], most_kept: int) -> int:
    """Count the numbers up to the second one with which every patch is read."""
    return sum(keep < most_kept for keep in keeps) + 2


def _reading(cascade: SlideCascade, run: CascadeRun, *, with_top: bool) -> KeepReading:
    outputs, bag = run.outputs[-1], run.bags[-1]
    logits = top_logits = outputs[LOGITS.name]
    if with_top and len(bag) > TOP_ROWS:
        top_logits = cascade.run_last(bag[top_rows(outputs[ATTENTION.name], TOP_ROWS)])[LOGITS.name]
    return KeepReading(logits, top_logits if with_top else None, run.patches_read)
