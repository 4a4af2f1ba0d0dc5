"""Measurements of each step alone, of reading and backbone together, and of a slide from end to end."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from hagmil._files import temporary_folder
from hagmil.bundle import Manifest
from hagmil.errors import SlideFailed, SlideRejected
from hagmil.runtime.bench.repeats import repeat
from hagmil.runtime.bench.report import (
    BackboneFigures,
    EndToEnd,
    MaskFigures,
    ModelFigures,
    PipelineFigures,
    ReadFigures,
    StageFigures,
)
from hagmil.runtime.bench.workload import Workload
from hagmil.runtime.inference.device import device_of, to_host
from hagmil.runtime.inference.encode import (
    EncodeOptions,
    default_batch_size,
    encode_patches,
    read_batches,
    reader_threads,
)
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.patches.stream import StreamStalls
from hagmil.runtime.predict import PredictOptions, predict_one
from hagmil.runtime.sessions import Session
from hagmil.runtime.slides.overview import read_overview
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.tissue.kernels import MaskKernels
from hagmil.runtime.tissue.segment import find_tissue
from hagmil.spec import BACKBONE_FEATURES, BAG, PATCHES

RUN_S = 1.0
"""Target duration of one run of backbone or pipeline, if there are enough patches."""

_MIN_BATCHES = 4  # of a pipeline, as the backbone is idle while the first batch is read
_MAX_CALLS = 100
_RESIDENT_BYTES = 256 << 20
_STEP_NAMES = {"read": "waiting for patches", "tissue": "mask", "models": "stage models"}


@dataclass(frozen=True, slots=True)
class Measuring:
    """Settings of the measurements; see :func:`measuring`.

    Args:
        asked: the given options for reading and encoding; None there selects a default.
        batch: patches in a batch of the backbone.
        readers: threads that read patches.
        repeats: timed runs of each measurement.
    """

    asked: EncodeOptions
    batch: int
    readers: int
    repeats: int

    @property
    def encode(self) -> EncodeOptions:
        """Options for reading and encoding, with batch size and readers filled in."""
        return replace(self.asked, batch_size=self.batch, reader_threads=self.readers)


def measuring(encode: EncodeOptions, model: LoadedModel, repeats: int) -> Measuring:
    """Fill in batch size and readers, by default those that suit the provider and the bundle's patches."""
    batch = encode.batch_size or default_batch_size(model.backbone, model.bundle.manifest.patch_px)
    readers = reader_threads(encode, model.backbone)
    return Measuring(encode, batch, readers, repeats)


def measure_reading(workload: Workload, how: Measuring) -> ReadFigures:
    """Measure reading alone: patches are read and discarded."""

    def _work() -> None:
        for _ in _batches(workload, how):
            pass

    timed = repeat(_work, how.repeats)
    count, side = len(workload.coords), workload.geometry.patch_px
    return ReadFigures(
        patches=count,
        seconds=timed.seconds,
        patches_per_s=count / timed.seconds,
        threads=how.readers,
        stage=workload.geometry.name,
        patch_px=side,
        megapixels_per_s=count * side**2 / timed.seconds / 1e6,
        repeats_s=timed.repeats_s,
    )


def measure_mask(slide: Slide, manifest: Manifest, repeats: int, kernels: MaskKernels | None = None) -> MaskFigures:
    """Measure reading the overview and segmenting tissue in it.

    Args:
        slide: an open slide.
        manifest: the bundle's manifest, for the tissue parameters.
        repeats: timed runs.
        kernels: implementation of the mask's steps; None selects one by the overview's size.
    """

    def _work() -> tuple[float, NDArray[np.bool_]]:
        start = perf_counter()
        overview = read_overview(slide, manifest.tissue.spacing_um)
        overview_s = perf_counter() - start
        return overview_s, find_tissue(overview, manifest.tissue, kernels).mask

    timed = repeat(_work, repeats)
    overview_s, mask = timed.found
    return MaskFigures(
        seconds=timed.seconds,
        overview_s=overview_s,
        segment_s=timed.seconds - overview_s,
        width=mask.shape[1],
        height=mask.shape[0],
        tissue_share=float(mask.mean()),
        repeats_s=timed.repeats_s,
    )


def resident_patches(workload: Workload, how: Measuring) -> NDArray[np.uint8]:
    """Read the first patches of a workload, at most 256 MiB, into uint8 (patches, patch_px, patch_px, 3)."""
    side = workload.geometry.patch_px
    most = max(1, _RESIDENT_BYTES // (3 * side**2))
    few = Workload(workload.slide, workload.geometry, workload.coords[:most])
    patches = np.empty((len(few.coords), side, side, 3), np.uint8)
    for rows, batch in _batches(few, how):
        patches[rows] = batch
    return patches


def measure_backbone(
    session: Session, patches: NDArray[np.uint8], batch: int, repeats: int, load_s: float
) -> BackboneFigures:
    """Measure the backbone on whole batches of patches in its device's memory.

    Args:
        session: the patch encoder.
        patches: uint8 (patches, side, side, 3); repeated if there are fewer than a batch.
        batch: patches in a batch.
        repeats: timed runs.
        load_s: seconds that loading the bundle took, for the report.
    """
    whole = len(patches) // batch * batch
    full = device_of(session).to_device(patches[:whole] if whole else np.resize(patches, (batch, *patches.shape[1:])))

    def _encode(count: int) -> None:
        for index in range(count):
            first = index * batch % len(full)
            outputs = session.run({PATCHES.name: full[first : first + batch]})
        to_host(outputs[BACKBONE_FEATURES.name])  # waits for a GPU, which runs asynchronously

    _encode(1)  # the first run allocates memory and, on a GPU, compiles
    start = perf_counter()
    _encode(1)
    runs = max(1, round(RUN_S / (perf_counter() - start)))

    def _work() -> None:
        _encode(runs)

    timed = repeat(_work, repeats)
    return BackboneFigures(
        patches_per_s=runs * batch / timed.seconds,
        batch=batch,
        patches=runs * batch,
        seconds=timed.seconds,
        engine=session.provider,
        load_s=load_s,
        repeats_s=timed.repeats_s,
    )


def measure_model(session: Session, stage: str, features: int, patches: int, repeats: int) -> ModelFigures:
    """Measure a stage model on random features; its cost depends on the size of the bag only.

    Args:
        session: the stage model.
        stage: name of the stage, for the report.
        features: length of a feature vector.
        patches: size of the bag.
        repeats: timed runs; for a fast model, each is the mean of several calls.
    """
    bag = device_of(session).to_device(np.random.default_rng(0).standard_normal((patches, features), np.float32))

    def _score(count: int) -> None:
        for _ in range(count):
            for output in session.run({BAG.name: bag}).values():
                to_host(output)

    _score(1)
    start = perf_counter()
    _score(1)
    calls = max(1, min(_MAX_CALLS, round(RUN_S / 5 / (perf_counter() - start))))

    def _work() -> None:
        _score(calls)

    timed = repeat(_work, repeats)
    return ModelFigures(
        stage=stage,
        patches=patches,
        seconds=timed.seconds / calls,
        repeats_s=tuple(seconds / calls for seconds in timed.repeats_s),
    )


def measure_pipeline(
    workload: Workload, model: LoadedModel, how: Measuring, *, reading_per_s: float, backbone_per_s: float
) -> PipelineFigures:
    """Measure reading and encoding together, as a stage of the cascade runs them.

    Args:
        workload: the patches.
        model: the loaded bundle.
        how: batch, readers, repeats.
        reading_per_s: patches per second of reading alone.
        backbone_per_s: patches per second of the backbone alone.
    """
    slower = min(reading_per_s, backbone_per_s)
    count = max(_MIN_BATCHES * how.batch, int(slower * RUN_S))
    few = Workload(workload.slide, workload.geometry, workload.coords[:count])

    def _work() -> tuple[StepClock, StreamStalls]:
        clock, stalls = StepClock(), StreamStalls()
        features = model.bundle.manifest.backbone.features
        encode_patches(
            few.slide, few.geometry, few.coords, model.backbone, features, how.encode, clock=clock, stalls=stalls
        )
        return clock, stalls

    timed = repeat(_work, how.repeats)
    clock, stalls = timed.found
    rate = len(few.coords) / timed.seconds
    return PipelineFigures(
        patches=len(few.coords),
        seconds=timed.seconds,
        patches_per_s=rate,
        backbone_share=clock.seconds["backbone"] / timed.seconds,
        backbone_waited_s=clock.seconds["read"],
        readers_waited_s=stalls.seconds,
        of_slower=rate / slower,
        reading_per_s=reading_per_s,
        repeats_s=timed.repeats_s,
    )


def measure_end_to_end(
    request: SlideRequest, model: LoadedModel, provider: str, options: PredictOptions, repeats: int
) -> EndToEnd:
    """Measure a slide from opening it to its written results, with the models already loaded.

    Args:
        request: the slide.
        model: the loaded bundle.
        provider: of ``model``, for the report.
        options: of the prediction.
        repeats: timed runs.

    Raises:
        SlideRejected: the slide is unsuitable for this bundle.
        SlideFailed: it cannot be read or processed.
    """

    def _work() -> tuple[dict[str, float], tuple[StageFigures, ...]]:
        with temporary_folder("bench") as folder:
            result = predict_one(request, model, folder, options)
        if result.status != "ok":
            kind = SlideRejected if result.status == "rejected" else SlideFailed
            raise kind(result.message or "no verdict", code=result.code)
        return result.timing_s, tuple(StageFigures(name=each.name, encoded=each.encoded) for each in result.stages)

    timed = repeat(_work, repeats)
    found, stages = timed.found
    steps = {_STEP_NAMES.get(name, name): seconds for name, seconds in found.items() if name != "total"}
    steps["other"] = max(0.0, timed.seconds - sum(steps.values()))
    total = sum(steps.values())
    shares = {name: seconds / total for name, seconds in steps.items()}
    encoded = sum(stage.encoded for stage in stages)
    return EndToEnd(
        provider=provider,
        patches=encoded,
        patches_per_s=encoded / total,
        seconds=total,
        backbone_share=shares["backbone"],
        backbone_waited_s=found["read"],
        steps_s=steps,
        shares=shares,
        stages=stages,
        repeats_s=timed.repeats_s,
    )


def _batches(workload: Workload, how: Measuring) -> Generator[tuple[NDArray[np.int64], NDArray[np.uint8]], None, None]:
    """Read the workload as the cascade does; yield the rows of each batch and its patches."""
    return read_batches(
        workload.slide,
        workload.geometry,
        workload.coords,
        batch_size=how.batch,
        threads=how.readers,
        tile_cache_bytes=how.asked.tile_cache_bytes,
    )
