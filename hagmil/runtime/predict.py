"""Slides to verdicts: one slide through the house, and a run over many that no single slide can stop."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hagmil._files import write_text
from hagmil.bundle import RESEARCH_USE_ONLY
from hagmil.errors import EnvironmentLacks, HagmilError, Interrupted, SlideRejected
from hagmil.progress import Progress
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel, builtin_bundle, load_model
from hagmil.runtime.inference.one_slide import Prepared, Seen, look, prepare
from hagmil.runtime.inference.prefetch import LookAhead
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import Verdict, class_attentions, stage_logits
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.results.attention import write_attention
from hagmil.runtime.results.class_heatmaps import CLASS_HEATMAPS, draw_class_heatmaps
from hagmil.runtime.results.heatmap import Caption, draw_heatmap
from hagmil.runtime.results.regions import write_regions
from hagmil.runtime.results.result import (
    ATTENTION_NAME,
    HEATMAP_NAME,
    REGIONS_NAME,
    RESULT_NAME,
    TABLE_NAME,
    LayerResult,
    Result,
    StageResult,
    read_result,
    table,
    write_result,
)
from hagmil.runtime.tissue.kernels import MaskKernels
from hagmil.runtime.versions import versions

_log = logging.getLogger(__name__)
DEFAULT_OUT = Path("hagmil-results")
"""Where results go when nobody says."""

_TABLE_EVERY = 25
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
Take = Callable[[SlideRequest, StepClock], Prepared]
"""Gives a slide, prepared; the clock gets the seconds of its steps."""


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How slides are taken through a model.

    Args:
        encode: batch size and reader threads.
        keep: patches kept at every stage but the last; the manifest's numbers where none is given.
        resume: leave slides alone whose result is there already, from the same bundle and the same settings.
        mask_kernels: what makes tissue masks (``hagmil.runtime.tissue.kernels.kernels_on``); None
            chooses by the mask's size.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    keep: int | None = None
    resume: bool = False
    mask_kernels: MaskKernels | None = None


def predict_slide(
    slide: str | Path,
    *,
    model: str | Path | None = None,
    out: str | Path | None = None,
    spacing_um: float | None = None,
    provider: str = "cpu",
    keep: int | None = None,
) -> Result:
    """Take one slide through a bundle: the whole of ``hagmil infer`` for one file, from Python.

    For many slides load the bundle once (``load_model``) and use ``predict_many``.

    Args:
        slide: the slide file.
        model: a bundle's folder; the built-in demonstration model, which knows phantoms only, where none is given.
        out: folder of result.json, heatmap.png, attention.h5 and regions.geojson;
            ``hagmil-results/<stem>`` where none is given.
        spacing_um: micrometres per level-0 pixel, in place of the file's.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        keep: patches kept at every stage but the last; the bundle's numbers where none is given.

    Returns:
        The result; a slide that cannot be read gives one whose ``status`` is not ``ok``.

    Raises:
        BundleError: the bundle is unusable.
        EnvironmentLacks: the provider is not on this machine.
        UsageError: the spacing is not above 0.
    """
    (request,) = slide_requests([str(slide)], spacing_um=spacing_um)
    loaded = load_model(Path(model) if model is not None else builtin_bundle(), provider=provider)
    folder = Path(out) if out is not None else DEFAULT_OUT / request.slide_id
    return predict_one(request, loaded, folder, PredictOptions(keep=keep))


def predict_many(
    requests: Sequence[SlideRequest],
    model: LoadedModel,
    out: Path,
    options: PredictOptions,
    *,
    on_result: Callable[[Result], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Result, ...]:
    """Take slides through a model, one after the other, and write a result for each.

    Args:
        requests: the slides.
        model: the loaded bundle.
        out: folder of the results: ``<slide_id>/`` for each slide, and ``results.csv``.
        options: how.
        on_result: called after each slide.
        progress: called after every batch of patches.

    Returns:
        One result a slide, in the order asked for.

    Raises:
        Interrupted: stopped by a signal; what was done is written, and ``resume`` goes on from there.
        EnvironmentLacks: the disk is full, or the device is lost: no next slide could do better.
    """
    results: list[Result] = []
    earlier = [_earlier_result(request, model, out, options) if options.resume else None for request in requests]
    wanted = [request for request, result in zip(requests, earlier, strict=True) if result is None]
    try:
        with _ahead(wanted, model, options) as take:
            for request, found in zip(requests, earlier, strict=True):
                result = found or predict_one(
                    request, model, out / request.slide_id, options, progress=progress, take=take
                )
                results.append(result)
                if on_result is not None:
                    on_result(result)
                if len(results) % _TABLE_EVERY == 0:
                    _write_table(out, results, model)
    except KeyboardInterrupt as error:
        _write_table(out, results, model)
        raise Interrupted(
            f"stopped after {len(results)} of {len(requests)} slides; the same command with --resume goes on"
        ) from error
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        raise EnvironmentLacks(
            f'no space left to write under "{out}", after {len(results)} of {len(requests)} slides; '
            "make room and run the same command with --resume",
            code="disk_full",
        ) from error
    _write_table(out, results, model)
    return tuple(results)


def predict_one(
    request: SlideRequest,
    model: LoadedModel,
    folder: Path,
    options: PredictOptions,
    *,
    progress: Progress | None = None,
    take: Take | None = None,
) -> Result:
    """Take one slide through a model and write its result, whatever becomes of it.

    Args:
        request: the slide.
        model: the loaded bundle.
        folder: where result.json, attention.h5, heatmap.png and regions.geojson go.
        options: how.
        progress: called after every batch of patches.
        take: gives the slide, prepared; it is prepared here where None.

    Returns:
        The result that was written; ``status`` says whether there is a verdict.

    Raises:
        OSError: a result cannot be written.
        EnvironmentLacks: the device is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT_NAME, HEATMAP_NAME, CLASS_HEATMAPS, ATTENTION_NAME, REGIONS_NAME):  # of an earlier run
        for path in folder.glob(name):
            path.unlink()
    clock = StepClock()
    report = _report(request, model, options)
    try:
        prepared = (take or _in_turn(model, options))(request, clock)
        seen = look(prepared, model, options.encode, keep=options.keep, clock=clock, progress=progress)
    except Exception as error:
        if not _concerns_one_slide(error):
            raise
        result = report(clock, **_failure(request, error))
    else:
        with clock.step("write"):
            _write_pictures(folder, request, model, seen)
        result = report(clock, **_success(model, seen))
    write_result(folder, result)  # last: where it stands, everything stands
    return result


def _in_turn(model: LoadedModel, options: PredictOptions) -> Take:
    """Slides prepared when they are asked for."""
    return lambda request, clock: prepare(request, model.bundle.manifest, options.mask_kernels, clock)


@contextmanager
def _ahead(requests: Sequence[SlideRequest], model: LoadedModel, options: PredictOptions) -> Iterator[Take]:
    """Slides prepared one ahead where a device works meanwhile."""
    if not model.backbone.on_device:
        yield _in_turn(model, options)
        return
    with LookAhead(requests, model.bundle.manifest, options.mask_kernels) as ahead:
        yield ahead.take


def _concerns_one_slide(error: Exception) -> bool:
    """Whether the next slide may fare better."""
    if isinstance(error, EnvironmentLacks):
        return error.code == "out_of_memory"
    return not (isinstance(error, OSError) and error.errno in _DISK_IS_FULL)


def _failure(request: SlideRequest, error: Exception) -> dict[str, Any]:
    if isinstance(error, HagmilError):
        status = "rejected" if isinstance(error, SlideRejected) else "failed"
        return {"status": status, "code": error.code, "message": error.message}
    if isinstance(error, MemoryError):
        return {
            "status": "failed",
            "code": "out_of_memory",
            "message": "this machine has too little memory for it",
        }
    _log.exception('slide "%s" failed unexpectedly', request.given)
    message = f"unexpected {type(error).__name__}: {error}; please report it with the log of --verbose"
    return {"status": "failed", "code": "internal", "message": message}


def _success(model: LoadedModel, seen: Seen) -> dict[str, Any]:
    return {
        "status": "ok",
        "prediction": seen.verdict.prediction,
        "probabilities": seen.verdict.probabilities,
        **_layers(seen.verdict),
        "temperature": model.bundle.manifest.temperature,
        "stages": tuple(
            StageResult(
                name=outcome.geometry.name,
                spacing_um=outcome.geometry.spacing_um,
                candidates=len(outcome.coords),
                encoded=len(outcome.attention),
                kept=len(outcome.kept),
                logits=tuple(float(value) for value in stage_logits(outcome.outputs)),
            )
            for outcome in seen.outcomes
        ),
        "provider": model.stages[-1].provider,
        "precision": model.bundle.manifest.precision,
        "spacing_um": seen.picture.slide_spacing_um,
        "spacing_source": seen.spacing_source,
        "warnings": seen.warnings,
    }


def _layers(verdict: Verdict) -> dict[str, Any]:
    """What is said where labels have two layers."""
    if verdict.coarse is None:
        return {}
    return {
        "coarse": LayerResult(prediction=verdict.coarse.prediction, probabilities=verdict.coarse.probabilities),
        "fine": LayerResult(prediction=verdict.prediction, probabilities=verdict.probabilities),
        "layers_agree": verdict.coarse.agrees,
        "coarse_from_fine": verdict.coarse.from_fine,
    }


def _report(request: SlideRequest, model: LoadedModel, options: PredictOptions) -> Callable[..., Result]:
    """What every result of this slide says, with or without a verdict."""

    def _make(clock: StepClock, **found: Any) -> Result:
        return Result(
            slide_id=request.slide_id,
            slide=request.given,
            keep=options.keep,
            timing_s={name: round(seconds, 4) for name, seconds in (*clock.seconds.items(), ("total", clock.total))},
            bundle_sha256=model.bundle.sha256,
            versions=versions(),
            intended_use=model.bundle.manifest.intended_use,
            **found,
        )

    return _make


def _write_pictures(folder: Path, request: SlideRequest, model: LoadedModel, seen: Seen) -> None:
    ranked = sorted(seen.verdict.probabilities.items(), key=lambda item: -item[1])
    caption = Caption(
        title=request.slide_id,
        verdict=f"{seen.verdict.prediction}  {ranked[0][1]:.3f}",
        details="   ".join(f"{name} {value:.3f}" for name, value in ranked),
        notice=notice_of(model),
    )
    draw_heatmap(folder / HEATMAP_NAME, seen.picture, seen.outcomes, caption)
    hierarchy, last = model.bundle.manifest.hierarchy, seen.outcomes[-1]
    attentions = class_attentions(hierarchy, seen.verdict, last.outputs)
    draw_class_heatmaps(folder, seen.picture, last, attentions, caption)
    write_attention(folder, seen.outcomes, hierarchy)
    write_regions(folder, seen.outcomes)


def notice_of(model: LoadedModel) -> str:
    """What every picture and every run says of a model: research use only, and what it is for."""
    intended_use = model.bundle.manifest.intended_use
    return intended_use if RESEARCH_USE_ONLY in intended_use else f"{RESEARCH_USE_ONLY} {intended_use}"


def _earlier_result(request: SlideRequest, model: LoadedModel, out: Path, options: PredictOptions) -> Result | None:
    """The result that is there already, if this run would give the same one."""
    try:
        result = read_result(out / request.slide_id)
    except (OSError, ValueError):
        return None
    same = (
        result.status == "ok"
        and result.slide == request.given
        and result.bundle_sha256 == model.bundle.sha256
        and result.keep == options.keep
        and (result.spacing_um if result.spacing_source == "override" else None) == request.spacing_um
    )
    return result if same else None


def _write_table(out: Path, results: Sequence[Result], model: LoadedModel) -> None:
    write_text(out / TABLE_NAME, table(results, model.bundle.manifest.classes))
