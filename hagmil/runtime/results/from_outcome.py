"""Build the result of a slide from its outcome or its failure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hagmil.bundle.adaptive import Reading, margin
from hagmil.errors import SlideFailed
from hagmil.runtime.inference.adaptive import AdaptiveOutcome
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.one_slide import SlideOutcome
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import Verdict, stage_logits
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.names import storable
from hagmil.runtime.results.failures import Failure
from hagmil.runtime.results.result import AdaptiveStep, LayerResult, Result, StageResult
from hagmil.runtime.slides.slide_files import slide_sha256
from hagmil.runtime.versions import versions


def result_of_outcome(
    request: SlideRequest, model: LoadedModel, keep: int | None, clock: StepClock, outcome: SlideOutcome
) -> Result:
    """Build the result of a slide that has a verdict.

    Args:
        request: the slide.
        model: the model that ran.
        keep: number of kept patches that overrides the bundle's, in adaptive runs the limit, or None.
        clock: seconds by step so far.
        outcome: what the cascade gave.
    """
    stages = tuple(
        StageResult(
            name=stage.geometry.name,
            spacing_um=stage.geometry.spacing_um,
            candidates=len(stage.coords),
            encoded=len(stage.attention),
            kept=len(stage.kept),
            logits=tuple(float(value) for value in stage_logits(stage.outputs)),
        )
        for stage in outcome.stages
    )
    return Result(
        **_common_fields(request, model, keep, clock, outcome.slide_sha256),
        status="ok",
        prediction=outcome.verdict.prediction,
        probabilities=outcome.verdict.probabilities,
        **_layer_fields(outcome.verdict),
        temperature=model.bundle.manifest.temperature,
        stages=stages,
        provider=model.stages[-1].provider,
        precision=model.bundle.manifest.precision,
        spacing_um=outcome.thumbnail.slide_spacing_um,
        spacing_source=outcome.spacing_source,  # type: ignore[arg-type]  # pydantic checks it
        **_adaptive_fields(outcome.adaptive, model.bundle.manifest.classes),
        patches_left_out=outcome.left_out,
        warnings=outcome.warnings,
    )


def result_of_failure(
    request: SlideRequest, model: LoadedModel, keep: int | None, clock: StepClock, failure: Failure
) -> Result:
    """Build the result of a slide that has no verdict; the arguments are those of :func:`result_of_outcome`."""
    return Result(
        **_common_fields(request, model, keep, clock, _sha256_after(failure, request.path)),
        status=failure.status,
        code=failure.code,
        message=failure.message,
    )


def _sha256_after(failure: Failure, slide: Path) -> str | None:
    """The digest of a slide without a verdict; None if it cannot be computed or the slide was changed."""
    if failure.code == "slide_changed":
        return None
    try:
        return slide_sha256(slide)
    except SlideFailed:
        return None


def _common_fields(
    request: SlideRequest, model: LoadedModel, keep: int | None, clock: StepClock, sha256: str | None
) -> dict[str, Any]:
    """Fields of every result, with or without a verdict."""
    seconds = {**clock.seconds, "total": clock.total}
    return {
        "slide_id": request.slide_id,
        "slide": storable(request.given),
        "keep": keep,
        "timing_s": {name: round(value, 4) for name, value in seconds.items()},
        "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "slide_sha256": sha256,
        "bundle_sha256": model.bundle.sha256,
        "versions": versions(),
        "intended_use": model.bundle.manifest.intended_use,
    }


def _adaptive_fields(outcome: AdaptiveOutcome | None, classes: Sequence[str]) -> dict[str, Any]:
    """Fields of adaptive runs."""
    if outcome is None:
        return {}
    return {
        "sure": outcome.sure,
        "keep_used": outcome.readings[-1].keep,
        "adaptive_steps": tuple(_adaptive_step(reading, classes) for reading in outcome.readings),
    }


def _adaptive_step(reading: Reading, classes: Sequence[str]) -> AdaptiveStep:
    return AdaptiveStep(
        keep=reading.keep,
        patches_read=reading.patches_read,
        prediction=classes[int(reading.logits.argmax())],
        margin=margin(reading.logits),
        top_prediction=classes[int(reading.top_logits.argmax())],
        top_margin=margin(reading.top_logits),
    )


def _layer_fields(verdict: Verdict) -> dict[str, Any]:
    """Fields of models with two layers of labels."""
    if verdict.coarse is None:
        return {}
    return {
        "coarse": LayerResult(prediction=verdict.coarse.prediction, probabilities=verdict.coarse.probabilities),
        "fine": LayerResult(prediction=verdict.prediction, probabilities=verdict.probabilities),
        "layers_agree": verdict.coarse.agrees,
        "coarse_from_fine": verdict.coarse.from_fine,
    }
