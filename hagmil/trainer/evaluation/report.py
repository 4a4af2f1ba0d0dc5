"""``evaluation.json``: metrics with intervals, and the prediction for each slide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from hagmil._models import FrozenModel
from hagmil._versions import __version__
from hagmil.bundle import Certainty, Digest, Tested
from hagmil.errors import DataError
from hagmil.spec import Kind
from hagmil.trainer.data.labels import Part
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec
from hagmil.trainer.evaluation.scoring import Scores
from hagmil.trainer.metrics.bootstrap import (
    RESAMPLES,
    Assessment,
    assess_with_intervals,
    estimate_share,
)
from hagmil.trainer.metrics.estimate import CONFIDENCE, Estimate

JSON_NAME = "evaluation.json"
HTML_NAME = "evaluation.html"


class EvaluatedModel(FrozenModel):
    """The evaluated model."""

    what: Literal["checkpoint", "bundle"]
    path: str
    sha256: Digest = Field(description="digest of the bundle, or of the checkpoint's weights")
    kind: Kind
    temperature: float | None = Field(default=None, description="divisor of the logits; null: not calibrated")
    coarse_temperature: float | None = Field(default=None, description="the same for the coarse classes of a hierarchy")
    certainty: Certainty | None = Field(
        default=None,
        description="when the adaptive cascade calls a verdict sure; null: not calibrated, or a checkpoint",
    )


class SlideVerdict(FrozenModel):
    """Label and prediction of one slide."""

    slide_id: str
    case_id: str
    label: str
    prediction: str
    probabilities: dict[str, float]
    coarse_label: str | None = None
    coarse_prediction: str | None = None
    coarse_probabilities: dict[str, float] = Field(default_factory=dict)


class EvaluationReport(FrozenModel):
    """Evaluation of a model on one part of a split."""

    format: Literal["hagmil-evaluation"] = "hagmil-evaluation"
    format_version: Literal[1] = 1
    hagmil: str = Field(description="version of hagmil that wrote the report")
    created: datetime
    model: EvaluatedModel
    part: Part
    confidence: float = Field(description="of the intervals, which are clustered by patient")
    seed: int = Field(description="of the bootstrap")
    empty_slides: tuple[str, ...] = Field(description="slides without tissue, which count in no metric")
    verdict: Assessment = Field(description="over the model's classes; the fine ones if there is a hierarchy")
    coarse: Assessment | None = Field(description="over the coarse classes; null without a hierarchy")
    agreement: Estimate | None = Field(description="share of slides whose coarse and fine predictions agree")
    tested: Tested | None = Field(
        default=None, description="verdicts by number of kept patches and by slide size (--keeps); null if not tested"
    )
    slides: tuple[SlideVerdict, ...]


def make_report(
    scores: Scores,
    spec: EvaluatedModelSpec,
    model: EvaluatedModel,
    part: Part,
    *,
    tested: Tested | None = None,
    empty_slides: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> EvaluationReport:
    """Compute metrics and intervals and collect them in a report.

    Args:
        scores: the predictions, at the model's temperatures.
        spec: classes and hierarchy of the model.
        model: description of the model for the report.
        part: the part of the split that the slides belong to.
        tested: verdicts by number of kept patches; None if not tested.
        empty_slides: names of the slides of this part without tissue.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        DataError: no slide has a prediction.
    """
    if not scores.verdict:
        raise DataError(f"the split has no slide with tissue in its {part} part; choose another --part")
    coarse = agreement = None
    if scores.coarse is not None and spec.hierarchy is not None:
        coarse = assess_with_intervals(scores.coarse, spec.hierarchy.coarse, resamples=resamples, seed=seed)
        parents = spec.hierarchy.fine_to_coarse
        agreement = estimate_share(
            [
                parents[_argmax(fine.probabilities)] == _argmax(own.probabilities)
                for fine, own in zip(scores.verdict, scores.coarse, strict=True)
            ],
            [score.case_id for score in scores.verdict],
        )
    return EvaluationReport(
        hagmil=__version__,
        created=datetime.now(UTC),
        model=model,
        part=part,
        confidence=CONFIDENCE,
        seed=seed,
        empty_slides=tuple(empty_slides),
        verdict=assess_with_intervals(scores.verdict, spec.classes, resamples=resamples, seed=seed),
        coarse=coarse,
        agreement=agreement,
        tested=tested,
        slides=_slides(scores, spec),
    )


def evaluation_schema() -> str:
    """Return the JSON schema of ``evaluation.json``, as published in docs/schemas."""
    return json.dumps(EvaluationReport.model_json_schema(), indent=2) + "\n"


def _slides(scores: Scores, spec: EvaluatedModelSpec) -> tuple[SlideVerdict, ...]:
    rows = []
    for place, score in enumerate(scores.verdict):
        coarse = {}
        if scores.coarse is not None and spec.hierarchy is not None:
            names, own = spec.hierarchy.coarse, scores.coarse[place]
            coarse = {
                "coarse_label": names[own.label],
                "coarse_prediction": names[_argmax(own.probabilities)],
                "coarse_probabilities": dict(zip(names, own.probabilities, strict=True)),
            }
        rows.append(
            SlideVerdict.model_validate(
                {
                    "slide_id": score.slide_id,
                    "case_id": score.case_id,
                    "label": spec.classes[score.label],
                    "prediction": spec.classes[_argmax(score.probabilities)],
                    "probabilities": dict(zip(spec.classes, score.probabilities, strict=True)),
                    **coarse,
                }
            )
        )
    return tuple(rows)


def _argmax(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)
