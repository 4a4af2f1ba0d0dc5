"""Predictions on feature files, from a checkpoint or from any models with the contract's tensors.

The cascade is the one of deployment (:mod:`hagmil.trainer.cascade.slide_cascade`). The logits of the finest stage give
the prediction. With a hierarchy, the coarse logits are HMIL's own, or those of the last coarse stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import BundleError
from hagmil.softmax import softmax
from hagmil.spec import COARSE_LOGITS, FINE_LOGITS, LOGITS
from hagmil.trainer.cascade.readings import SlideReadings, read_slide
from hagmil.trainer.cascade.slide_cascade import SlideCascade, StageOutputs, StageRunner, models_runner
from hagmil.trainer.checkpoints.checkpoint import Checkpoint, build_models
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluationPart
from hagmil.trainer.metrics.bootstrap import ScoredSlide, probability_table
from hagmil.trainer.metrics.temperature_scaling import at_temperature

_Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """Predictions for the slides of one part.

    Args:
        verdict: over the model's classes; the fine ones if there is a hierarchy.
        coarse: over the coarse classes, in the same order of slides; None if the model does not predict them.
        readings: verdicts with other numbers of kept patches, in the same order; empty unless requested.
    """

    verdict: tuple[ScoredSlide, ...]
    coarse: tuple[ScoredSlide, ...] | None = None
    readings: tuple[SlideReadings, ...] = ()

    def at(self, temperature: float | None, coarse_temperature: float | None) -> Scores:
        """Return the predictions with their logits divided by temperatures; None means 1."""
        coarse = self.coarse and _at(self.coarse, coarse_temperature)
        return replace(self, verdict=_at(self.verdict, temperature), coarse=coarse)


def checkpoint_runner(checkpoint: Checkpoint, *, device: str = "cpu") -> StageRunner:
    """Return a function that runs a checkpoint's stage models.

    Args:
        checkpoint: a checkpoint of any kind.
        device: torch device of the models.

    Raises:
        BundleError: the weights are unusable.
    """
    models = [model.to(device) for model in build_models(checkpoint)]
    return models_runner(models, checkpoint.card.kind, device=device)


def score_slides(
    part: EvaluationPart,
    spec: EvaluatedModelSpec,
    run: StageRunner,
    *,
    keeps: Sequence[int] = (),
    with_top: bool = False,
    after_slide: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Classify slides with the cascade of deployment.

    Args:
        part: the slides.
        spec: stages and classes of the model.
        run: runs the stage models.
        keeps: numbers of kept patches for ``readings``, which also have one with all patches; empty for no readings.
        with_top: give the readings their ``top_logits``.
        after_slide: called after each slide with the number of finished slides.

    Returns:
        The predictions at temperature 1, in the order of the slides.

    Raises:
        DataError: features cannot be read or are not finite.
        BundleError: outputs of the model are not finite or do not follow the contract.
    """
    fine, coarse, readings = [], [], []
    for done, slide in enumerate(part.slides, start=1):
        cascade = SlideCascade(slide, part.stages, run)
        logits, coarse_logits = _layers(cascade.run([stage.keep for stage in spec.stages[:-1]]).outputs, spec)
        case_id, label = part.cases[slide.slide_id], slide.label
        fine.append(ScoredSlide(slide.slide_id, case_id, label, _probabilities(logits, spec.classes)))
        if coarse_logits is not None and spec.hierarchy is not None:
            named = _probabilities(coarse_logits, spec.hierarchy.coarse)
            coarse.append(ScoredSlide(slide.slide_id, case_id, spec.hierarchy.fine_to_coarse[label], named))
        if keeps:
            readings.append(read_slide(cascade, keeps, with_top=with_top))
        after_slide(done)
    return Scores(tuple(fine), tuple(coarse) or None, tuple(readings))


def _layers(found: Sequence[StageOutputs], spec: EvaluatedModelSpec) -> tuple[_Logits, _Logits | None]:
    """Return the logits of the model's classes, and those of the coarse classes if it predicts them."""
    finest = found[-1]
    if spec.kind == "hmil":
        return finest[FINE_LOGITS.name], finest[COARSE_LOGITS.name]
    has_coarse = spec.hierarchy is not None and len(found) > 1
    return finest[LOGITS.name], found[-2][LOGITS.name] if has_coarse else None


def _probabilities(logits: _Logits, classes: Sequence[str]) -> tuple[float, ...]:
    if logits.shape != (len(classes),):
        raise BundleError(f"the model gives logits {logits.shape} for {len(classes)} classes", code="contract")
    return tuple(softmax(logits).tolist())


def _at(scores: tuple[ScoredSlide, ...], temperature: float | None) -> tuple[ScoredSlide, ...]:
    if temperature is None or not scores:
        return scores
    table = at_temperature(probability_table(scores)[0], temperature)
    return tuple(replace(score, probabilities=tuple(row)) for score, row in zip(scores, table.tolist(), strict=True))
