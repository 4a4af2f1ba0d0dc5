"""Verdicts on feature files, from a checkpoint's models or any others that speak the contract's tensors.

The cascade is deployment's, over features that lie there already:

1. All rows of the coarsest stage are its bag.
2. A stage's model sees its bag; but for the finest, the rows of highest attention are kept, in order of rank.
3. The children of kept rows are the next stage's bag.
4. The finest stage's logits are the verdict. With a hierarchy, the coarse classes' are HMIL's own, or those of the
   last coarse stage.

Models enter as one function from a stage's number and bag to its outputs: PyTorch here, ONNX Runtime in
:mod:`hagmil.export.evaluate_bundle`. Everything else is the same for both.
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
from hagmil.spec import ATTENTION, COARSE_LOGITS, FINE_LOGITS, LOGITS, STAGE_OUTPUTS
from hagmil.trainer.checkpoints.checkpoint import Checkpoint, build_models
from hagmil.trainer.data.cohort import CohortSlide, CohortStage, read_bag
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluationPart
from hagmil.trainer.methods.selection import child_rows, keep_highest
from hagmil.trainer.metrics.bootstrap import ScoredSlide, probability_table
from hagmil.trainer.metrics.temperature_scaling import at_temperature

StageOutputs = Mapping[str, NDArray[np.float32]]
"""A stage's outputs by the contract's tensor names."""

_Logits = NDArray[np.float32]

StageRunner = Callable[[int, NDArray[np.float32]], StageOutputs]
"""A stage's number (coarse to fine) and its bag, float32 (patches, dim), to its outputs."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts on the slides of one part.

    Args:
        verdict: by the model's classes; the fine ones where there is a hierarchy.
        coarse: by the coarse classes, in the same order of slides; None where the model does not name them.
    """

    verdict: tuple[ScoredSlide, ...]
    coarse: tuple[ScoredSlide, ...] | None = None

    def at(self, temperature: float | None, coarse_temperature: float | None) -> Scores:
        """The same verdicts with their logits divided by temperatures; None leaves them as they are."""
        return Scores(_at(self.verdict, temperature), self.coarse and _at(self.coarse, coarse_temperature))


def checkpoint_runner(checkpoint: Checkpoint, *, device: str = "cpu") -> StageRunner:
    """A checkpoint's models as a function of a stage's number and its bag.

    Args:
        checkpoint: any kind.
        device: where torch shall run them.

    Raises:
        BundleError: the weights cannot be used.
    """
    models = [model.to(device) for model in build_models(checkpoint)]
    names = [spec.name for spec in STAGE_OUTPUTS[checkpoint.card.kind]]

    def run(index: int, features: NDArray[np.float32]) -> StageOutputs:
        with torch.inference_mode():
            values = models[index](torch.from_numpy(features).to(device))
        return {name: value.float().cpu().numpy() for name, value in zip(names, values, strict=True)}

    return run


def score_slides(
    part: EvaluationPart,
    spec: EvaluatedModelSpec,
    run: StageRunner,
    *,
    after_slide: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Classify slides as deployment does.

    Args:
        part: the slides.
        spec: the model's stages and classes.
        run: the model.
        after_slide: called after each slide with the number done.

    Returns:
        The verdicts, at temperature 1, in the order of the slides.

    Raises:
        DataError: features that cannot be read or are not finite.
        BundleError: the model's outputs are not finite or not the contract's.
    """
    verdicts, coarse = [], []
    for done, slide in enumerate(part.slides, start=1):
        logits, coarse_logits = _layers(_cascade(slide, part.stages, spec, run), spec)  # step 4
        case_id, label = part.cases[slide.slide_id], slide.label
        verdicts.append(ScoredSlide(slide.slide_id, case_id, label, _probabilities(logits, spec.classes)))
        if coarse_logits is not None and spec.hierarchy is not None:
            named = _probabilities(coarse_logits, spec.hierarchy.coarse)
            coarse.append(ScoredSlide(slide.slide_id, case_id, spec.hierarchy.fine_to_coarse[label], named))
        after_slide(done)
    return Scores(tuple(verdicts), tuple(coarse) or None)


def _cascade(
    slide: CohortSlide, stages: Sequence[CohortStage], spec: EvaluatedModelSpec, run: StageRunner
) -> list[StageOutputs]:
    """Every stage's outputs on one slide, coarse to fine."""
    bags = read_bag(slide).features
    rows: Tensor | None = None  # step 1
    found: list[StageOutputs] = []
    for index, (bag, stage, model) in enumerate(zip(bags, stages, spec.stages, strict=True)):
        chosen = bag if rows is None else bag[rows]
        features = chosen.to(torch.float32, copy=True).numpy()
        outputs = run(index, features)  # step 2
        found.append(outputs)
        _check_finite(outputs, features, f'slide "{slide.slide_id}", stage {stage.name}')
        if model.keep is not None and stage.factor is not None:
            kept = keep_highest(torch.from_numpy(np.array(outputs[ATTENTION.name])), model.keep)
            rows = child_rows(kept if rows is None else rows[kept], stage.factor)  # step 3
    return found


def _layers(found: Sequence[StageOutputs], spec: EvaluatedModelSpec) -> tuple[_Logits, _Logits | None]:
    """The verdict's logits, and those of the coarse classes: HMIL's own, or the stage's before the finest."""
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
        raise DataError(f"{where}: the features hold values that are not finite; extract it again")
    raise BundleError(f"{where}: the model's {', '.join(bad)} hold values that are not finite", code="not_finite")
