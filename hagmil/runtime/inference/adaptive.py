"""The adaptive cascade: runs with growing numbers of kept patches until the verdict is sure.

1. The coarsest stage runs once. Its patches are ranked by attention.
2. For each number of kept patches K, the finer stages run as in :mod:`hagmil.runtime.inference.cascade`. Features are
   held, so that only patches that no smaller K needed are read and encoded.
3. The last stage's model also runs on the rows with the highest attention alone (``top_rows`` of the bundle).
4. :mod:`hagmil.bundle.adaptive` compares the readings of successive K, and says when to stop.
5. Once all patches are kept, the next K gives the same reading; it is taken without another run, and is the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Bundle
from hagmil.bundle.adaptive import Reading, read_until_sure, top_rows
from hagmil.bundle.tested import TOP_ROWS
from hagmil.errors import UsageError
from hagmil.progress import Progress
from hagmil.runtime.inference.cascade import SlideStages, StageOutcome, descend
from hagmil.runtime.inference.device import device_of
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.feature_store import FeatureStore
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import Outputs, stage_logits
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.slides.slide import Slide


@dataclass(frozen=True, slots=True)
class AdaptiveOutcome:
    """What the adaptive cascade gave.

    Args:
        stages: the outcome of each stage with the last number of kept patches; the last stage gives the verdict.
        readings: the reading of each number of kept patches that ran.
        sure: whether the last two readings agree with a margin above the bundle's threshold.
    """

    stages: tuple[StageOutcome, ...]
    readings: tuple[Reading, ...]
    sure: bool


def adaptive_keeps(bundle: Bundle, limit: int | None = None) -> tuple[int, ...]:
    """The numbers of kept patches that the adaptive cascade may use, in the order in which they run.

    Args:
        bundle: the bundle.
        limit: largest number; None uses all numbers for which the bundle was calibrated.

    Returns:
        At least two numbers.

    Raises:
        UsageError: the bundle has no cascade or is not calibrated, or the limit is not possible.
    """
    manifest = bundle.manifest
    if len(manifest.stages) == 1:
        raise UsageError(f'bundle "{bundle.path}" has one stage, which reads all patches; run it without --adaptive')
    if manifest.certainty is None:
        raise UsageError(
            f'bundle "{bundle.path}" does not say when a verdict is sure; run hagmil eval --calibrate on it, '
            "or infer without --adaptive"
        )
    keeps = manifest.certainty.keeps
    within = tuple(keep for keep in keeps if limit is None or keep <= limit)
    if len(within) < 2 or (limit is not None and limit > keeps[-1]):
        raise UsageError(
            f'bundle "{bundle.path}" is calibrated for {", ".join(map(str, keeps))} kept patches, and two of these '
            f"numbers are compared; with --adaptive, pass --keep {keeps[1]} to {keeps[-1]}, not {limit}"
        )
    return within


def run_adaptive(
    slide: Slide,
    coords: NDArray[np.int64],
    model: LoadedModel,
    plan: Sequence[StageGeometry],
    options: EncodeOptions,
    *,
    clock: StepClock,
    limit: int | None = None,
    progress: Progress | None = None,
) -> AdaptiveOutcome:
    """Run the adaptive cascade on one slide.

    Args:
        slide: an open slide that has a spacing.
        coords: int64 (patches, 2), the coarsest stage's patches; see ``lay_out``.
        model: the loaded bundle, which :func:`adaptive_keeps` accepts.
        plan: geometry of the model's stages on this slide; see ``lay_out``.
        options: batch size and reader threads.
        clock: adds up the seconds of each step.
        limit: largest number of kept patches; None uses all numbers for which the bundle was calibrated.
        progress: called after every batch of patches.

    Returns:
        The outcome with the number of kept patches at which the cascade stopped.

    Raises:
        SlideFailed: a patch cannot be read.
        UsageError: see :func:`adaptive_keeps`.
    """
    keeps = adaptive_keeps(model.bundle, limit)
    certainty = model.bundle.manifest.certainty
    assert certainty is not None  # adaptive_keeps has checked it
    cascade = _HeldCascade(SlideStages(slide, model, plan, options, clock, progress), coords, certainty.top_rows)
    readings, sure = read_until_sure(cascade.readings(keeps), certainty.threshold)
    return AdaptiveOutcome(cascade.outcomes, readings, sure)


class _HeldCascade:
    """A cascade that holds the coarsest stage's outputs and the finer stages' features.

    Args:
        stages: the stages on the slide.
        coords: int64 (patches, 2), the coarsest stage's patches.
        top: rows of the last stage's second bag.
    """

    def __init__(self, stages: SlideStages, coords: NDArray[np.int64], top: int = TOP_ROWS) -> None:
        self.outcomes: tuple[StageOutcome, ...] = ()
        self._stages, self._coords, self._top = stages, coords, top
        self._coarsest = stages.run(0, coords)  # step 1
        device = device_of(stages.model.backbone)
        self._stores = [FeatureStore(partial(stages.encode, index), device) for index in range(len(stages.plan))]

    def readings(self, keeps: Sequence[int]) -> Iterator[Reading]:
        """Run the cascade with each number of kept patches; ``outcomes`` is the outcome of the last run."""
        reading: Reading | None = None
        for keep in keeps:
            if reading is not None and all(len(one.kept) == len(one.coords) for one in self.outcomes[:-1]):
                yield replace(reading, keep=keep)  # step 5
                return
            self.outcomes = descend(self._stages.plan, self._coords, [keep] * len(self._stages.plan), self._run)
            reading = self._reading(keep)
            yield reading

    def _run(self, index: int, coords: NDArray[np.int64]) -> Outputs:
        """Step 2."""
        return self._stages.outputs(index, self._stores[index].bag(coords)) if index else self._coarsest

    def _reading(self, keep: int) -> Reading:
        last, index = self.outcomes[-1], len(self.outcomes) - 1
        logits = top_logits = stage_logits(last.outputs)
        rows = top_rows(last.attention, self._top)
        if len(rows) < len(last.coords):  # step 3
            bag = self._stores[index].bag(last.coords[rows])
            top_logits = stage_logits(self._stages.outputs(index, bag))
        read = len(self._coords) + sum(map(len, self._stores))
        return Reading(keep, read, logits, top_logits)
