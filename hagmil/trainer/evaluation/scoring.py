"""Predictions on feature files, from a checkpoint or from any models with the contract's tensors.

The cascade is the one of deployment, applied to features of all patches:

1. The bag of the coarsest stage has all its rows.
2. The stage model gets its bag. At each stage but the last, the rows with the highest attention are kept, in order of
   rank.
3. The children of the kept rows are the bag of the next stage.
4. The logits of the finest stage give the prediction. With a hierarchy, the coarse logits are HMIL's own, or those of
   the last coarse stage.

The models are given as a function from the number of a stage and its bag to the outputs. It runs PyTorch here and ONNX
Runtime in :mod:`hagmil.export.evaluate_bundle`; everything else is common to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hagmil.errors import BundleError, DataError
from hagmil.softmax import softmax
from hagmil.spec import ATTENTION, COARSE_LOGITS, FINE_LOGITS, LOGITS
from hagmil.trainer.checkpoints.checkpoint import Checkpoint, build_models
from hagmil.trainer.data.cohort import CohortSlide, CohortStage, read_bag
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluationPart
from hagmil.trainer.methods.selection import child_rows, keep_highest
from hagmil.trainer.metrics.bootstrap import ScoredSlide, probability_table
from hagmil.trainer.metrics.temperature_scaling import at_temperature
from hagmil.trainer.models.build import output_specs

StageOutputs = Mapping[str, NDArray[np.float32]]
"""Outputs of a stage model, by the names of the contract's tensors."""

_Logits = NDArray[np.float32]

StageRunner = Callable[[int, NDArray[np.float32]], StageOutputs]
"""Maps the number of a stage (coarse to fine) and its bag, float32 (patches, dim), to the outputs."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Predictions for the slides of one part.

    Args:
        verdict: over the model's classes; the fine ones if there is a hierarchy.
        coarse: over the coarse classes, in the same order of slides; None if the model does not predict them.
    """

    verdict: tuple[ScoredSlide, ...]
    coarse: tuple[ScoredSlide, ...] | None = None

    def at(self, temperature: float | None, coarse_temperature: float | None) -> Scores:
        """Return the predictions with their logits divided by temperatures; None means 1."""
        return Scores(_at(self.verdict, temperature), self.coarse and _at(self.coarse, coarse_temperature))


def checkpoint_runner(checkpoint: Checkpoint, *, device: str = "cpu") -> StageRunner:
    """Return a function that runs a checkpoint's stage models.

    Args:
        checkpoint: a checkpoint of any kind.
        device: torch device of the models.

    Raises:
        BundleError: the weights are unusable.
    """
    models = [model.to(device) for model in build_models(checkpoint)]
    names = [[spec.name for spec in output_specs(model, checkpoint.card.kind)] for model in models]

    def run(index: int, features: NDArray[np.float32]) -> StageOutputs:
        with torch.inference_mode():
            values = models[index](torch.from_numpy(features).to(device))
        return {name: value.float().cpu().numpy() for name, value in zip(names[index], values, strict=True)}

    return run


def score_slides(
    part: EvaluationPart,
    spec: EvaluatedModelSpec,
    run: StageRunner,
    *,
    after_slide: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Classify slides with the cascade of deployment.

    Args:
        part: the slides.
        spec: stages and classes of the model.
        run: runs the stage models.
        after_slide: called after each slide with the number of finished slides.

    Returns:
        The predictions at temperature 1, in the order of the slides.

    Raises:
        DataError: features cannot be read or are not finite.
        BundleError: outputs of the model are not finite or do not follow the contract.
    """
    fine, coarse = [], []
    for done, slide in enumerate(part.slides, start=1):
        logits, coarse_logits = _layers(_cascade(slide, part.stages, spec, run), spec)  # step 4
        case_id, label = part.cases[slide.slide_id], slide.label
        fine.append(ScoredSlide(slide.slide_id, case_id, label, _probabilities(logits, spec.classes)))
        if coarse_logits is not None and spec.hierarchy is not None:
            named = _probabilities(coarse_logits, spec.hierarchy.coarse)
            coarse.append(ScoredSlide(slide.slide_id, case_id, spec.hierarchy.fine_to_coarse[label], named))
        after_slide(done)
    return Scores(tuple(fine), tuple(coarse) or None)


def _cascade(
    slide: CohortSlide, stages: Sequence[CohortStage], spec: EvaluatedModelSpec, run: StageRunner
) -> list[StageOutputs]:
    """Run the cascade on one slide; return the outputs of every stage, coarse to fine."""
    bags = read_bag(slide).features
    rows: Tensor | None = None  # step 1
    by_stage: list[StageOutputs] = []
    for index, (bag, stage, model) in enumerate(zip(bags, stages, spec.stages, strict=True)):
        chosen = bag if rows is None else bag[rows]
        features = chosen.to(torch.float32, copy=True).numpy()
        outputs = run(index, features)  # step 2
        by_stage.append(outputs)
        _check_finite(outputs, features, f'slide "{slide.slide_id}", stage {stage.name}')
        if model.keep is not None and stage.factor is not None:
            kept = keep_highest(torch.from_numpy(np.array(outputs[ATTENTION.name])), model.keep)
            rows = child_rows(kept if rows is None else rows[kept], stage.factor)  # step 3
    return by_stage


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


def _check_finite(outputs: StageOutputs, features: NDArray[np.float32], where: str) -> None:
    bad = [name for name, value in outputs.items() if not np.isfinite(value).all()]
    if not bad:
        return
    if not np.isfinite(features).all():
        raise DataError(f"{where}: the features contain values that are not finite; extract the slide again")
    raise BundleError(f"{where}: the model's {', '.join(bad)} contain values that are not finite", code="not_finite")
