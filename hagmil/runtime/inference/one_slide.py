"""Prediction of one slide in two parts: preparation, and the cascade.

Preparation needs no device, so that a run over many slides can prepare the next slide in advance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Manifest
from hagmil.progress import Progress
from hagmil.runtime.inference.adaptive import AdaptiveOutcome, run_adaptive
from hagmil.runtime.inference.cascade import StageOutcome, run_cascade
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.slide_warnings import slide_warnings
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import Verdict, verdict_of
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.memory.heap import trim_heap
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.plan import lay_out, require_tissue, stage_specs
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.overview import Overview, picture_of
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.slide_files import SlideFiles
from hagmil.runtime.tissue.kernels import MaskKernels


@dataclass(frozen=True, slots=True)
class PreparedSlide:
    """An open slide whose coarsest patches are known.

    Args:
        slide: the open slide; :func:`run_slide` closes it.
        files: its files before it was opened.
        sha256: its digest.
        plan: geometry of the model's stages on the slide.
        coords: int64 (patches, 2), the coarsest stage's patches.
        thumbnail: the background of the heatmap.
        left_out: number of patches of the coarsest stage that are left out because tiles have no bytes.
    """

    slide: Slide
    files: SlideFiles
    sha256: str
    plan: tuple[StageGeometry, ...]
    coords: NDArray[np.int64]
    thumbnail: Overview
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """The outcome of the cascade on one slide.

    Args:
        verdict: the verdict of the last stage.
        stages: the outcome of each stage, coarse to fine.
        thumbnail: the background of the heatmap.
        slide_sha256: digest of the slide.
        spacing_source: ``metadata`` or ``override``.
        warnings: deviations that did not prevent a verdict, each with its code.
        adaptive: the outcome of the adaptive cascade; None if the number of kept patches was fixed.
        left_out: number of patches of the coarsest stage that were left out because tiles have no bytes.
    """

    verdict: Verdict
    stages: tuple[StageOutcome, ...]
    thumbnail: Overview
    slide_sha256: str
    spacing_source: str | None
    warnings: tuple[str, ...]
    adaptive: AdaptiveOutcome | None = None
    left_out: int = 0


def prepare_slide(
    request: SlideRequest,
    manifest: Manifest,
    mask_kernels: MaskKernels | None,
    clock: StepClock,
    max_missing: int = 0,
) -> PreparedSlide:
    """Open a slide, find its tissue, and lay out the coarsest stage.

    Args:
        request: the slide.
        manifest: the manifest of the bundle.
        mask_kernels: implementation of the tissue mask; None chooses by its size.
        clock: adds up the seconds of ``open``, ``digest``, ``tissue`` and ``picture``.
        max_missing: largest number of patches that are left out because tiles of tissue have no bytes.

    Returns:
        The prepared slide, still open.

    Raises:
        SlideRejected: the slide gives no spacing, is too coarse, or has no tissue.
        SlideFailed: the slide cannot be read, or was changed meanwhile.
    """
    files = SlideFiles.of(request.path)
    with files.unchanged():
        with clock.step("open"):
            slide = open_slide(request.path, spacing_um=request.spacing_um)
        try:
            with clock.step("digest"):
                sha256 = files.sha256()
            with clock.step("tissue"):
                layout = lay_out(
                    slide,
                    stage_specs(manifest),
                    manifest.patch_px,
                    manifest.tissue,
                    mask_kernels,
                    max_missing=max_missing,
                    picture=True,
                )
                require_tissue(layout)
            with clock.step("picture"):
                thumbnail = layout.picture or picture_of(slide, layout.overview)
            plan, coords, left_out = layout.plan, layout.coords, layout.left_out
            del layout  # the overview and the mask of a large slide take tens of megabytes
            trim_heap()
            return PreparedSlide(slide, files, sha256, plan, coords, thumbnail, left_out)
        except BaseException:
            slide.close()
            raise


def run_slide(
    prepared: PreparedSlide,
    model: LoadedModel,
    options: EncodeOptions,
    *,
    keep: int | None,
    adaptive: bool = False,
    clock: StepClock,
    progress: Progress | None = None,
) -> SlideOutcome:
    """Run the cascade on a prepared slide, and close the slide.

    Args:
        prepared: the prepared slide.
        model: the loaded bundle.
        options: batch size and reader threads.
        keep: patches kept at every stage but the last, or with ``adaptive`` the largest number; None uses the
            manifest's numbers.
        adaptive: keep more and more patches until the verdict is sure.
        clock: adds up the seconds of each step.
        progress: called after every batch of patches.

    Raises:
        SlideFailed: a patch cannot be read, or the slide was changed since it was prepared.
    """
    manifest, slide, found = model.bundle.manifest, prepared.slide, None
    with slide, prepared.files.unchanged():
        arguments = (slide, prepared.coords, model, prepared.plan, options)
        if adaptive:
            found = run_adaptive(*arguments, clock=clock, limit=keep, progress=progress)
            outcomes = found.stages
        else:
            outcomes = run_cascade(*arguments, clock=clock, keep=keep, progress=progress)
    verdict = verdict_of(manifest, outcomes[-1].outputs, outcomes[-2].outputs if len(outcomes) > 1 else None)
    warnings = slide_warnings(
        manifest,
        prepared.thumbnail.slide_spacing_um,
        outcomes,
        keep=keep,
        adaptive=adaptive,
        left_out=prepared.left_out,
    )
    return SlideOutcome(
        verdict,
        outcomes,
        prepared.thumbnail,
        prepared.sha256,
        slide.spacing_source,
        warnings,
        found,
        prepared.left_out,
    )
