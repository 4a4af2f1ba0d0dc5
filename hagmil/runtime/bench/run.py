"""All measurements of a bench report, in order.

1. Load the bundle with each of the given providers, by default with every provider that starts on this machine.
2. Lay out the slide; by default, a phantom.
3. Measure the mask, and reading with the readers of each provider; then, for each provider, the backbone, the
   pipeline, end to end and the stage models.
4. Start ``hagmil infer`` in new processes with the fastest provider: start-up and memory.
5. Sweep over settings, if wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil._files import temporary_folder
from hagmil._versions import __version__
from hagmil.bundle import Bundle
from hagmil.errors import BundleError, EnvironmentLacks, Interrupted, UsageError
from hagmil.progress import Progress
from hagmil.runtime.bench.machine import this_machine
from hagmil.runtime.bench.measure import (
    Measuring,
    measure_backbone,
    measure_end_to_end,
    measure_mask,
    measure_model,
    measure_pipeline,
    measure_reading,
    measuring,
    resident_patches,
)
from hagmil.runtime.bench.report import (
    BackboneFigures,
    BenchReport,
    EndToEnd,
    ModelFigures,
    PipelineFigures,
    ReadFigures,
    Settings,
    SweepPoint,
)
from hagmil.runtime.bench.start_up import InferCall, measure_start_up
from hagmil.runtime.bench.sweep import sweep, sweep_size
from hagmil.runtime.bench.workload import Workload, describe_bundle, describe_slide, request_of, workload_of
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel, builtin_bundle, load_model
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.predict import PredictOptions
from hagmil.runtime.sessions import PROVIDERS
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.tissue.kernels import kernels_on
from hagmil.runtime.versions import versions


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of ``hagmil bench``.

    Args:
        slide: the slide as given; None for a phantom.
        bundle: folder of a bundle; None for the built-in demonstration model.
        spacing_um: micrometres per level-0 pixel, overriding that of the file.
        providers: providers to measure, which must be present; empty for all that start.
        encode: batch size and reader threads.
        threads: threads of the models on the CPU; None for all cores.
        mask_device: device of the tissue mask: ``cpu`` or ``cuda``.
        keep: patches kept at each stage; None for those of the bundle.
        repeats: timed runs of each measurement after one warm-up.
        patches: largest number of patches of the finest stage to read.
        phantom_px: side of the phantom in pixels.
        sweep: whether to measure several batch sizes and numbers of threads.
        command: the command line, for the report.
    """

    slide: str | None = None
    bundle: Path | None = None
    spacing_um: float | None = None
    providers: tuple[str, ...] = ()
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    threads: int | None = None
    mask_device: str = "cpu"
    keep: int | None = None
    repeats: int = 3
    patches: int = 2048
    phantom_px: int = 4096
    sweep: bool = False
    command: str = ""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The bundle, loaded with one provider."""

    model: LoadedModel
    load_s: float


@dataclass(frozen=True, slots=True)
class _Figures:
    """The measurements of one provider."""

    backbone: BackboneFigures
    models: tuple[ModelFigures, ...]
    pipeline: PipelineFigures
    end_to_end: EndToEnd


def run_bench(options: BenchOptions, progress: Progress) -> BenchReport:
    """Run all measurements.

    Args:
        options: what to measure, and how.
        progress: called at the start and end of each measurement.

    Returns:
        The report; no file is written.

    Raises:
        UsageError: unknown provider, or more than one slide.
        SlideError: the slide cannot be read, or is unsuitable for the bundle.
        BundleError: the bundle is unusable.
        EnvironmentLacks: a given provider is absent, or none starts.
        Interrupted: stopped by a signal; no temporary file remains.
    """
    try:
        return _bench(options, progress)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped before the end; no report was written; run the command again") from error


def _bench(options: BenchOptions, progress: Progress) -> BenchReport:
    kernels_on(options.mask_device)  # fails early if the device is missing
    loaded, skipped = _load(options)  # step 1
    bundle = next(iter(loaded.values())).model.bundle
    with temporary_folder("bench") as folder:
        progress("slide", 0, 1)
        request = request_of(options.slide, folder, bundle.manifest, options.phantom_px, options.spacing_um)
        with open_slide(request.path, spacing_um=request.spacing_um) as slide:  # step 2
            workload = workload_of(slide, bundle.manifest, options.patches)
            described = describe_slide(slide, phantom=options.slide is None)
            progress("slide", 1, 1)
            measured = _Bench(options, progress, loaded, bundle, request, workload).measure()
    return BenchReport(
        hagmil=__version__,
        created=datetime.now(UTC),
        command=options.command,
        machine=this_machine(),
        versions=versions(),
        slide=described,
        bundle=describe_bundle(bundle),
        settings=Settings(
            batch=options.encode.batch_size,
            readers=options.encode.reader_threads,
            threads=options.threads,
            mask_device=options.mask_device,
            keep=options.keep,
            repeats=options.repeats,
        ),
        skipped=skipped,
        **measured,
    )


def _load(options: BenchOptions) -> tuple[dict[str, _Loaded], dict[str, str]]:
    """Load the bundle with each provider; also return why providers that were not given were skipped."""
    path = options.bundle or builtin_bundle()
    loaded: dict[str, _Loaded] = {}
    skipped: dict[str, str] = {}
    for provider in dict.fromkeys(options.providers or PROVIDERS):
        start = perf_counter()
        try:
            model = load_model(path, provider=provider, threads=options.threads)
        except (EnvironmentLacks, BundleError, UsageError) as error:  # a quantised bundle runs on the CPU only
            if options.providers or provider == "cpu":
                raise
            skipped[provider] = error.message
        else:
            loaded[provider] = _Loaded(model, perf_counter() - start)
    return loaded, skipped


@dataclass(frozen=True, slots=True)
class _Bench:
    """The inputs of the measurements.

    Args:
        options: what to measure, and how.
        progress: called at the start and end of each measurement.
        loaded: the loaded bundle, by provider.
        bundle: the same bundle, without sessions.
        request: the slide, for runs that open it themselves.
        workload: the open slide and its patches.
    """

    options: BenchOptions
    progress: Progress
    loaded: dict[str, _Loaded]
    bundle: Bundle
    request: SlideRequest
    workload: Workload

    def measure(self) -> dict[str, Any]:
        """Run steps 3 to 5; return fields of :class:`BenchReport`."""
        hows = {name: self._how(name) for name in self.loaded}
        first = next(iter(hows.values()))
        readings = {(how.batch, how.readers): how for how in hows.values()}  # providers may share a setting
        what = "mask and reading"
        self.progress(what, 0, 1 + len(readings))
        mask = measure_mask(
            self.workload.slide, self.bundle.manifest, self.options.repeats, kernels_on(self.options.mask_device)
        )
        self.progress(what, 1, 1 + len(readings))
        reads: dict[tuple[int, int], ReadFigures] = {}
        for setting, how in readings.items():
            reads[setting] = measure_reading(self.workload, how)
            self.progress(what, 1 + len(reads), 1 + len(readings))
        patches = resident_patches(self.workload, first)
        found = {
            name: self._with_provider(name, patches, how, reads[how.batch, how.readers]) for name, how in hows.items()
        }
        fastest = max(found, key=lambda name: found[name].backbone.patches_per_s)
        return {
            "read": reads[hows[fastest].batch, hows[fastest].readers],
            "mask": mask,
            "backbone": {name: each.backbone for name, each in found.items()},
            "models": {name: each.models for name, each in found.items()},
            "pipeline": {name: each.pipeline for name, each in found.items()},
            "end_to_end": found[fastest].end_to_end,
            "end_to_end_by_provider": {name: each.end_to_end for name, each in found.items()},
            **self._start_up(fastest, hows[fastest]),
            "sweep": self._sweep(patches, first) if self.options.sweep else (),
        }

    def _how(self, provider: str) -> Measuring:
        return measuring(self.options.encode, self.loaded[provider].model, self.options.repeats)

    def _with_provider(self, name: str, patches: NDArray[np.uint8], how: Measuring, read: ReadFigures) -> _Figures:
        model, what = self.loaded[name].model, f"models on {name}"
        self.progress(what, 0, 4)
        backbone = measure_backbone(model.backbone, patches, how.batch, how.repeats, self.loaded[name].load_s)
        self.progress(what, 1, 4)
        pipeline = measure_pipeline(
            self.workload, model, how, reading_per_s=read.patches_per_s, backbone_per_s=backbone.patches_per_s
        )
        self.progress(what, 2, 4)
        options = PredictOptions(
            encode=how.encode, keep=self.options.keep, mask_kernels=kernels_on(self.options.mask_device)
        )
        end_to_end = measure_end_to_end(self.request, model, name, options, how.repeats)
        self.progress(what, 3, 4)
        features = self.bundle.manifest.backbone.features
        models = tuple(
            measure_model(session, stage.name, features, stage.encoded, how.repeats)
            for session, stage in zip(model.stages, end_to_end.stages, strict=True)
        )
        self.progress(what, 4, 4)
        return _Figures(backbone, models, pipeline, end_to_end)

    def _start_up(self, provider: str, how: Measuring) -> dict[str, Any]:
        """Step 4."""
        self.progress("start-up", 0, 1)
        call = InferCall(
            request=self.request,
            bundle=self.bundle.path,
            provider=provider,
            batch=how.batch,
            readers=how.readers,
            threads=self.options.threads,
            keep=self.options.keep,
            mask_device=self.options.mask_device,
        )
        seconds, start_up, memory = measure_start_up(call, self.options.repeats)
        self.progress("start-up", 1, 1)
        return {"start_up_s": seconds, "start_up": start_up, "memory": memory, "peak_rss_mb": memory.peak_rss_mb}

    def _sweep(self, patches: NDArray[np.uint8], how: Measuring) -> tuple[SweepPoint, ...]:
        """Step 5."""
        models = {name: each.model for name, each in self.loaded.items()}
        points: list[SweepPoint] = []
        total = sweep_size(models, patches)
        for point in sweep(self.workload, models, patches, how):
            points.append(point)
            self.progress("sweep", len(points), total)
        return tuple(points)
