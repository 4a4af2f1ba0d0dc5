"""The cascade: coarse to fine, reading only the children of kept patches (Xiong et al. 2023, section 3.2).

1. The coarsest stage's candidates are the quadtree's cells that hold enough tissue.
2. A stage's candidates are read, encoded, and given to the stage's model as one bag.
3. The patches of highest attention are kept; equal scores keep their order. Kept patches stand in order of rank,
   as in the published code: the order of a bag matters to its model.
4. Their children are the next stage's candidates. Back to 2, until the last stage gives the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from hagmil.runtime.inference.verdict import patch_attention
from hagmil.runtime.memory.buffers import release_buffers
from hagmil.runtime.memory.heap import trim_heap
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.sessions import Session
from hagmil.runtime.slides.slide import Slide
from hagmil.spec import BAG


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What one stage saw and said.

    Args:
        geometry: its spacing and patch size on this slide.
        coords: int64 (patches, 2), level-0 corners of all patches that it read, in the order of its bag.
        outputs: what its model gave, by the contract's tensor names.
        attention: float32 (patches,), one score a patch; higher is more.
        kept: int64 (kept,), rows of ``coords`` whose children the next stage read, highest first; empty on the last.
    """

    geometry: StageGeometry
    coords: NDArray[np.int64]
    outputs: dict[str, NDArray[np.float32]]
    attention: NDArray[np.float32]
    kept: NDArray[np.int64]


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
    """Take one slide through all stages.

    Args:
        slide: an open slide that has a spacing.
        coords: int64 (patches, 2), the coarsest stage's patches; see ``lay_out``.
        model: the loaded bundle.
        plan: geometry of its stages on this slide; see ``lay_out``.
        options: batch size and reader threads.
        clock: gets the seconds by step.
        keep: patches kept at every stage but the last; the manifest's numbers where none is given.
        progress: called after every batch of patches.

    Returns:
        One outcome a stage, coarse to fine; the last holds the verdict.

    Raises:
        SlideFailed: a patch cannot be read.
    """
    manifest = model.bundle.manifest
    outcomes = []
    for index, (stage, geometry, session) in enumerate(zip(manifest.stages, plan, model.stages, strict=True)):
        features = encode_patches(  # step 2
            slide,
            geometry,
            coords,
            model.backbone,
            manifest.backbone.features,
            options,
            clock=clock,
            progress=progress,
        )
        if not session.on_device:
            release_buffers()
        trim_heap()
        with clock.step("models"):
            outputs = run_stage(session, features, stage.name)
        del features
        trim_heap()
        attention = patch_attention(outputs)
        last = index == len(plan) - 1
        kept = highest(attention, 0 if last else keep or stage.keep or 0)  # step 3
        outcomes.append(StageOutcome(geometry, coords, outputs, attention, kept))
        if not last:
            factor = geometry.patch_level0 // plan[index + 1].patch_level0
            coords = children(coords[kept], geometry.patch_level0, factor)  # step 4
    return tuple(outcomes)


def highest(attention: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Rows of the highest scores, highest first; equal scores keep their order.

    Args:
        attention: float32 (patches,).
        count: how many; all of them where there are fewer.

    Returns:
        int64 (min(count, patches),).
    """
    return np.argsort(-attention, kind="stable")[:count].astype(np.int64)


def run_stage(session: Session, features: Any, name: str) -> dict[str, NDArray[np.float32]]:
    """Give a bag to a stage's model.

    Args:
        session: the stage's session.
        features: float32 (patches, dim), at least one row; NumPy's array or cupy's.
        name: the stage's name, for messages.

    Returns:
        Its outputs by the contract's names, NumPy's arrays of float32.

    Raises:
        BundleError: an output is not finite.
    """
    bag = features if session.on_device else to_host(features)
    outputs = {key: np.asarray(to_host(value), np.float32) for key, value in session.run({BAG.name: bag}).items()}
    bad = [key for key, value in outputs.items() if not np.isfinite(value).all()]
    if bad:
        raise BundleError(f"stage {name}: {', '.join(bad)} hold values that are not finite", code="not_finite")
    return outputs
