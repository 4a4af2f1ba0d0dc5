"""The cascade: stages from coarse to fine that read only the children of kept patches (Xiong et al. 2023, section 3.2).

1. The candidates of the coarsest stage are the cells of the quadtree that contain enough tissue.
2. The candidates of a stage are read and encoded, and the stage's model gets them as one bag.
3. The patches with the highest attention are kept; equal scores keep their order. Kept patches are sorted by rank, as
   in the published code, because the model depends on the order of a bag.
4. Their children are the candidates of the next stage. Continue with step 2 until the last stage gives the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import BundleError
from hagmil.progress import Progress
from hagmil.runtime.inference.device import to_host
from hagmil.runtime.inference.encode import EncodeOptions, encode_patches
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import Outputs, patch_attention
from hagmil.runtime.memory.buffers import release_buffers
from hagmil.runtime.memory.heap import trim_heap
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.sessions import Session
from hagmil.runtime.slides.slide import Slide
from hagmil.spec import BAG

RunStage = Callable[[int, NDArray[np.int64]], Outputs]
"""Gives the outputs of a stage's model: takes the stage's index, and the patches' coordinates, int64 (patches, 2)."""


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What one stage read and what its model gave.

    Args:
        geometry: the stage's spacing and patch size on this slide.
        coords: int64 (patches, 2), level-0 top-left corners (x, y) of all patches, in the order of the bag.
        outputs: outputs of the stage's model, by the tensor names of the contract.
        attention: float32 (patches,), one score for each patch; higher means more attention.
        kept: int64 (kept,), row numbers of ``coords`` whose children the next stage reads, highest attention first;
            empty for the last stage.
    """

    geometry: StageGeometry
    coords: NDArray[np.int64]
    outputs: dict[str, NDArray[np.float32]]
    attention: NDArray[np.float32]
    kept: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlideStages:
    """The stages of a model on one slide: reads and encodes patches, and runs the stage models.

    Args:
        slide: an open slide that has a spacing.
        model: the loaded bundle.
        plan: geometry of the model's stages on this slide; see ``lay_out``.
        options: batch size and reader threads.
        clock: adds up the seconds of each step.
        progress: called after every batch of patches.
    """

    slide: Slide
    model: LoadedModel
    plan: Sequence[StageGeometry]
    options: EncodeOptions
    clock: StepClock
    progress: Progress | None = None

    def run(self, index: int, coords: NDArray[np.int64]) -> Outputs:
        """Read and encode patches, and run the stage's model on them as one bag (step 2)."""
        features = self.encode(index, coords)
        outputs = self.outputs(index, features)
        del features
        if not self.model.stages[index].on_device:
            trim_heap()
        return outputs

    def encode(self, index: int, coords: NDArray[np.int64]) -> Any:
        """Features of patches of a stage, float32 (patches, dim); see :func:`encode_patches`."""
        return encode_patches(
            self.slide,
            self.plan[index],
            coords,
            self.model.backbone,
            self.model.bundle.manifest.backbone.features,
            self.options,
            clock=self.clock,
            progress=self.progress,
        )

    def outputs(self, index: int, features: Any) -> Outputs:
        """Outputs of a stage's model for a bag of features."""
        session = self.model.stages[index]
        if not session.on_device:
            release_buffers()
            trim_heap()
        with self.clock.step("models"):
            return run_stage(session, features, self.plan[index].name)


def run_cascade(
    slide: Slide,
    coords: NDArray[np.int64],
    model: LoadedModel,
    plan: Sequence[StageGeometry],
    options: EncodeOptions,
    *,
    clock: StepClock,
    keep: int | None = None,
    progress: Progress | None = None,
) -> tuple[StageOutcome, ...]:
    """Run all stages on one slide.

    Args:
        slide: an open slide that has a spacing.
        coords: int64 (patches, 2), the coarsest stage's patches; see ``lay_out``.
        model: the loaded bundle.
        plan: geometry of the model's stages on this slide; see ``lay_out``.
        options: batch size and reader threads.
        clock: adds up the seconds of each step.
        keep: patches kept at every stage but the last; None uses the manifest's numbers.
        progress: called after every batch of patches.

    Returns:
        One outcome for each stage, coarse to fine; the last gives the verdict.

    Raises:
        SlideFailed: a patch cannot be read.
    """
    stages = SlideStages(slide, model, plan, options, clock, progress)
    keeps = [keep or stage.keep or 0 for stage in model.bundle.manifest.stages]
    return descend(plan, coords, keeps, stages.run)


def descend(
    plan: Sequence[StageGeometry], coords: NDArray[np.int64], keeps: Sequence[int], run: RunStage
) -> tuple[StageOutcome, ...]:
    """Go through the stages from coarse to fine (steps 2 to 4).

    Args:
        plan: geometry of the stages.
        coords: int64 (patches, 2), the coarsest stage's patches.
        keeps: number of patches kept at each stage; that of the last stage is not used.
        run: gives the outputs of a stage's model for patches.

    Returns:
        One outcome for each stage.
    """
    outcomes = []
    for index, geometry in enumerate(plan):
        outputs = run(index, coords)  # step 2
        attention = patch_attention(outputs)
        last = index == len(plan) - 1
        kept = highest_rows(attention, 0 if last else keeps[index])  # step 3
        outcomes.append(StageOutcome(geometry, coords, outputs, attention, kept))
        if not last:
            factor = geometry.patch_level0 // plan[index + 1].patch_level0
            coords = children(coords[kept], geometry.patch_level0, factor)  # step 4
    return tuple(outcomes)


def highest_rows(attention: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Row numbers of the highest scores, highest first; equal scores keep their order.

    Args:
        attention: float32 (patches,).
        count: number of rows; all rows if there are fewer.

    Returns:
        int64 (min(count, patches),).
    """
    return np.argsort(-attention, kind="stable")[:count].astype(np.int64)


def run_stage(session: Session, features: Any, name: str) -> dict[str, NDArray[np.float32]]:
    """Run a stage's model on a bag.

    Args:
        session: the stage's session.
        features: float32 (patches, dim), at least one row; a NumPy or cupy array.
        name: the stage's name, for error messages.

    Returns:
        The outputs by the tensor names of the contract, as NumPy arrays of float32.

    Raises:
        BundleError: an output is not finite.
    """
    bag = features if session.on_device else to_host(features)
    outputs = {key: np.asarray(to_host(value), np.float32) for key, value in session.run({BAG.name: bag}).items()}
    bad = [key for key, value in outputs.items() if not np.isfinite(value).all()]
    if bad:
        raise BundleError(f"stage {name}: {', '.join(bad)} contain values that are not finite", code="not_finite")
    return outputs
