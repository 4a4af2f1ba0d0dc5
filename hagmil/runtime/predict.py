"""Slides to verdicts: one slide, and a run over many slides in which a failed slide does not stop the others.

In a run, threads prepare the next slides (see ``prefetch``) and write the results of earlier ones. The main thread only
runs the cascade. Results are given in the order of the slides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hagmil._files import OutputFolder
from hagmil.errors import EnvironmentLacks, UsageError
from hagmil.progress import Progress
from hagmil.runtime.inference.adaptive import adaptive_keeps
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.one_slide import PreparedSlide, SlideOutcome, prepare_slide, run_slide
from hagmil.runtime.inference.ordered_tasks import OrderedTasks
from hagmil.runtime.inference.prefetch import Overlap, SlidePrefetcher
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import SlideRequest, slide_request, slide_requests
from hagmil.runtime.results.attention import read_attention, stage_attention
from hagmil.runtime.results.failures import ends_run, failure_of, interrupted, is_output_error, output_failed, writing
from hagmil.runtime.results.from_outcome import result_of_failure, result_of_outcome
from hagmil.runtime.results.output_folder import read_results, require_choice, with_ids_of
from hagmil.runtime.results.result import RESULT_NAME, Result, write_result
from hagmil.runtime.results.results_table import write_table
from hagmil.runtime.results.reuse import why_not_reused
from hagmil.runtime.results.slide_folder import clear_slide_folder, write_slide_files
from hagmil.runtime.sessions.time_limit import time_limit
from hagmil.runtime.tissue.kernels import MaskKernels

_TABLE_EVERY = 25
_log = logging.getLogger(__name__)

Prepare = Callable[[SlideRequest, StepClock], PreparedSlide]
"""Prepares a slide, or waits until it is prepared; the clock gets the seconds of the steps."""


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Settings of a run.

    Args:
        encode: batch size and reader threads.
        keep: patches kept at every stage but the last, or with ``adaptive`` the largest number; None uses the
            manifest's numbers.
        adaptive: keep more and more patches until the verdict is sure.
        resume: skip slides whose result this run would repeat (``hagmil.runtime.results.reuse``).
        overwrite: replace existing results of the slides.
        mask_kernels: implementation of the tissue mask (``hagmil.runtime.tissue.kernels.kernels_on``); None
            chooses by the mask's size.
        max_missing: largest number of patches of the coarsest stage that are left out of a slide because tiles of
            tissue have no bytes in the file; with more, the slide fails.
        timeout_s: seconds that a slide may take; a slide that takes longer fails. None: no limit.
        hold_attention: results hold coordinates and attention in memory. A long run leaves this off.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    keep: int | None = None
    adaptive: bool = False
    resume: bool = False
    overwrite: bool = False
    mask_kernels: MaskKernels | None = None
    max_missing: int = 0
    timeout_s: float | None = None
    hold_attention: bool = False


def predict_slide(
    slide: str | Path,
    *,
    model: str | Path | LoadedModel | None = None,
    out: str | Path | None = None,
    spacing_um: float | None = None,
    provider: str = "cpu",
    keep: int | None = None,
    adaptive: bool = False,
    overwrite: bool = False,
) -> Result:
    """Predict one slide.

    For several slides, load the model once with ``load_model``, or call ``predict_many``.

    Args:
        slide: the slide file.
        model: a loaded model or a bundle's folder. None uses the built-in demonstration model, which was trained on
            synthetic slides only.
        out: folder for result.json, heatmap.png, attention.h5 and regions.geojson. None writes nothing.
        spacing_um: micrometres per level-0 pixel, which overrides the file's.
        provider: ``cpu``, ``cuda`` or ``tensorrt``; has no effect on a model that is already loaded.
        keep: patches kept at every stage but the last; None uses the bundle's numbers. With ``adaptive``, the largest
            number.
        adaptive: keep 4, 8, 16, ... patches until the verdict is sure; the result has ``sure``, ``keep_used`` and
            ``adaptive_steps``. The bundle must be calibrated for it (``hagmil eval --calibrate``).
        overwrite: replace a result that ``out`` already has.

    Returns:
        The result, which holds coordinates and attention of each stage as arrays. If the slide cannot be read, or does
        not fit the model, ``status`` is not ``ok``, and ``code`` and ``message`` give the reason.

    Raises:
        BundleError: the bundle cannot be used.
        EnvironmentLacks: the provider is missing on this machine, the disk is full, or ``out`` cannot be written.
        UsageError: the provider is unknown, the spacing is not above 0, ``out`` has a result (code ``exists``), or the
            bundle cannot be used with ``adaptive`` or this ``keep``.
    """
    request = slide_request(slide, spacing_um=spacing_um)
    folder = None if out is None else Path(out)
    if folder is not None and (folder / RESULT_NAME).exists() and not overwrite:
        raise UsageError(f'"{folder}" has a result; choose another folder or pass overwrite=True', code="exists")
    options = PredictOptions(keep=keep, adaptive=adaptive, hold_attention=True)
    return predict_one(request, _loaded(model, provider), folder, options)


def predict_many(
    slides: Sequence[str | Path],
    *,
    model: str | Path | LoadedModel | None = None,
    out: str | Path | None = None,
    spacing_um: float | None = None,
    provider: str = "cpu",
    keep: int | None = None,
    adaptive: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    on_result: Callable[[Result], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Result, ...]:
    """Predict many slides, one after the other. A slide that fails does not stop the run.

    Args:
        slides: files, folders or globs.
        model: a loaded model or a bundle's folder; None uses the built-in demonstration model.
        out: folder for a folder ``<slide_id>`` for each slide, and ``results.csv``, the table of these slides and of
            those of earlier runs in ``out``. None writes nothing.
        spacing_um: micrometres per level-0 pixel of all slides, which overrides that of the files.
        provider: ``cpu``, ``cuda`` or ``tensorrt``; has no effect on a model that is already loaded.
        keep: patches kept at every stage but the last; None uses the bundle's numbers. With ``adaptive``, the largest
            number.
        adaptive: keep 4, 8, 16, ... patches of each slide until its verdict is sure; see ``predict_slide``.
        resume: skip slides whose result in ``out`` has the slide's digest, comes from the same bundle with the same
            ``spacing_um``, ``keep``, ``adaptive`` and provider, and has all its files. An ``out`` that holds results
            needs ``resume`` or ``overwrite``; both keep the results of other slides.
        overwrite: replace the results that the slides already have in ``out``.
        on_result: called with the result of each slide.
        progress: called after every batch of patches with the stage's name, and the number of patches done and in
            total.

    Returns:
        One result for each slide, in the order of the slides, with coordinates and attention as arrays.

    Raises:
        BundleError: the bundle cannot be used.
        EnvironmentLacks: the provider is missing on this machine, the device is lost, the disk is full, or ``out``
            cannot be written.
        Interrupted: Ctrl-C while ``out`` is given; finished slides are written, and ``resume`` continues the run.
        UsageError: no slides, an unknown provider, a spacing that is not above 0, ``resume`` without ``out``, an
            ``out`` that holds results without ``resume`` or ``overwrite`` (code ``exists``), or a bundle that cannot be
            used with ``adaptive`` or this ``keep``.
    """
    if resume and out is None:
        raise UsageError("resume=True needs out, the folder of the earlier results")
    requests = slide_requests(slides, spacing_um=spacing_um)
    options = PredictOptions(keep=keep, adaptive=adaptive, resume=resume, overwrite=overwrite, hold_attention=True)
    folder = None if out is None else Path(out)
    if folder is not None:
        require_choice(folder, resume=resume, overwrite=overwrite)  # before the model is loaded
    return predict_requests(requests, _loaded(model, provider), folder, options, on_result=on_result, progress=progress)


def predict_requests(
    requests: Sequence[SlideRequest],
    model: LoadedModel,
    out: Path | None,
    options: PredictOptions,
    *,
    on_result: Callable[[Result], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Result, ...]:
    """Predict slides whose ids and paths are resolved; see :func:`predict_many`.

    Args:
        requests: the slides.
        model: the loaded bundle.
        out: folder for ``results.csv`` and a folder ``<slide_id>`` for each slide. None writes nothing.
        options: settings of the run.
        on_result: called with the result of each slide.
        progress: called after every batch of patches.

    Returns:
        One result for each slide, in the order of the requests.

    Raises:
        Interrupted: Ctrl-C while ``out`` is given; finished slides are written, and ``resume`` continues the run.
        EnvironmentLacks: ``out`` cannot be written, the disk is full, or the device is lost.
        UsageError: ``out`` holds results, and the options say neither ``resume`` nor ``overwrite`` (code ``exists``),
            or the model cannot run with ``options.adaptive``.
    """
    _check_adaptive(model, options)
    output = None
    if out is not None:
        require_choice(out, resume=options.resume, overwrite=options.overwrite)
        output = OutputFolder.open(out, "*")
    others = {} if out is None else read_results(out)
    requests = with_ids_of(requests, others)
    earlier = _earlier_results(requests, others, model, out, options) if options.resume and out is not None else {}
    wanted = [request for request in requests if request.slide_id not in earlier]
    results: list[Result] = []

    def _write_table() -> None:
        if out is not None:
            write_table(out, [*results, *others.values()], model.bundle.manifest.classes)

    overlap = Overlap.of(model)
    tasks: OrderedTasks[Result] = OrderedTasks(threads=overlap.threads, behind=overlap.slides, name="hagmil-results")

    def _collect(found: Iterable[Result]) -> None:
        for result in found:
            results.append(result)
            if on_result is not None:
                on_result(result)
            if len(results) % _TABLE_EVERY == 0:
                _write_table()

    prefetcher = SlidePrefetcher(
        wanted,
        model.bundle.manifest,
        options.mask_kernels,
        max_missing=options.max_missing,
        timeout_s=options.timeout_s,
        ahead=overlap.slides,
        threads=overlap.threads,
    )
    with prefetcher:
        try:
            for request in requests:
                if output is not None:
                    output.require_present()
                others.pop(request.slide_id, None)
                if request.slide_id in earlier:
                    tasks.add(earlier[request.slide_id])
                else:
                    folder = None if out is None else out / request.slide_id
                    tasks.submit(_start_slide(request, model, folder, options, prefetcher.take, progress))
                _collect(tasks.take())
            _collect(tasks.take_all())
            if output is not None:
                output.require_present()
            _write_table()
        except BaseException as error:
            results += tasks.stop()
            if out is None:
                raise
            done = {result.slide_id for result in results}
            others = {slide_id: result for slide_id, result in read_results(out).items() if slide_id not in done}
            with suppress(OSError, EnvironmentLacks):
                if output is not None:
                    output.require_present()
                _write_table()
            if isinstance(error, KeyboardInterrupt):
                raise interrupted(len(results), len(requests)) from error
            if is_output_error(error):
                raise output_failed(error, out, len(results), len(requests)) from error
            raise
    return tuple(results)


def predict_one(
    request: SlideRequest,
    model: LoadedModel,
    folder: Path | None,
    options: PredictOptions,
    *,
    progress: Progress | None = None,
) -> Result:
    """Predict one slide whose id and path are resolved, and write its result, also if it fails.

    Args:
        request: the slide.
        model: the loaded bundle.
        folder: folder for result.json, attention.h5, heatmap.png and regions.geojson. None writes nothing.
        options: settings of the run.
        progress: called after every batch of patches.

    Returns:
        The result; ``status`` says whether there is a verdict.

    Raises:
        EnvironmentLacks: the device is lost, the disk is full, or the folder above ``folder`` cannot be written.
        UsageError: the model cannot run with ``options.adaptive``.
    """
    _check_adaptive(model, options)

    def _prepare(request: SlideRequest, clock: StepClock) -> PreparedSlide:
        return prepare_slide(request, model.bundle.manifest, options.mask_kernels, clock, options.max_missing)

    return _start_slide(request, model, folder, options, _prepare, progress)()


def _start_slide(
    request: SlideRequest,
    model: LoadedModel,
    folder: Path | None,
    options: PredictOptions,
    prepare: Prepare,
    progress: Progress | None,
) -> Callable[[], Result]:
    """Run the cascade on a slide.

    Returns:
        The rest of the work, which needs no device: it writes the files of the slide and gives its result.
    """
    clock = StepClock()
    found: SlideOutcome | Exception
    try:
        with time_limit(options.timeout_s):
            found = _run(prepare(request, clock), model, folder, options, clock, progress)
    except Exception as error:
        if ends_run(error):
            raise
        found = error
    clock.pause()
    return partial(_finish_slide, request, model, folder, options, clock, found)


def _finish_slide(
    request: SlideRequest,
    model: LoadedModel,
    folder: Path | None,
    options: PredictOptions,
    clock: StepClock,
    found: SlideOutcome | Exception,
) -> Result:
    """Write the files of a slide, also if it failed, and return its result."""
    clock.resume()
    try:
        if isinstance(found, Exception):
            raise found
        if folder is not None:
            with time_limit(options.timeout_s), clock.step("write"), writing(folder):
                write_slide_files(folder, request.slide_id, model, found)
        result = result_of_outcome(request, model, options.keep, clock, found)
        if folder is not None:
            with writing(folder):
                write_result(folder, result)  # written last, so that its presence marks a complete result
    except Exception as error:
        if ends_run(error):
            raise
        result = result_of_failure(request, model, options.keep, clock, failure_of(error, request.given))
        if folder is not None:
            _write_failure(folder, result)
        return result
    if options.hold_attention:
        return result.with_attention([stage_attention(stage) for stage in found.stages])
    return result


def _run(
    prepared: PreparedSlide,
    model: LoadedModel,
    folder: Path | None,
    options: PredictOptions,
    clock: StepClock,
    progress: Progress | None,
) -> SlideOutcome:
    """Make the folder of a prepared slide, and run the cascade."""
    try:
        if folder is not None:
            with writing(folder):
                clear_slide_folder(folder)
    except BaseException:
        prepared.slide.close()
        raise
    return run_slide(
        prepared,
        model,
        options.encode,
        keep=options.keep,
        adaptive=options.adaptive,
        clock=clock,
        progress=progress,
    )


def _write_failure(folder: Path, result: Result) -> None:
    """Write the result of a slide that failed; only log it if that is why the slide failed."""
    try:
        clear_slide_folder(folder)
        write_result(folder, result)
    except Exception as error:
        if ends_run(error):
            raise
        _log.warning('slide "%s" has no result.json: %s', result.slide, error)


def _check_adaptive(model: LoadedModel, options: PredictOptions) -> None:
    """Raise the error of an adaptive run that is not possible before a slide is opened, as it is not the slide's."""
    if options.adaptive:
        adaptive_keeps(model.bundle, options.keep)


def _loaded(model: str | Path | LoadedModel | None, provider: str) -> LoadedModel:
    return model if isinstance(model, LoadedModel) else load_model(model, provider=provider)


def _earlier_results(
    requests: Sequence[SlideRequest],
    others: Mapping[str, Result],
    model: LoadedModel,
    out: Path,
    options: PredictOptions,
) -> dict[str, Result]:
    """Results in ``out`` that this run would repeat, by slide id."""
    found: dict[str, Result] = {}
    for request in requests:
        result, folder = others.get(request.slide_id), out / request.slide_id
        if result is None:
            continue
        difference = why_not_reused(
            result, folder, request, model, options.keep, adaptive=options.adaptive, max_missing=options.max_missing
        )
        if difference is not None:
            _log.info('slide "%s" is run again, its result in "%s" is not used: %s', request.given, folder, difference)
            continue
        found[request.slide_id] = result.with_attention(read_attention(folder)) if options.hold_attention else result
    return found
