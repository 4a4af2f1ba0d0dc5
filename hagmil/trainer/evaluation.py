"""Verdicts on many slides, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hagmil.trainer.cohort import CohortSlide, read_bag
from hagmil.trainer.hag_mil import HagMil
from hagmil.trainer.metrics import ClassificationMetrics, classification_metrics


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Args:
        metrics: of the verdicts.
        stage_losses: each stage's mean cross entropy, coarse to fine; empty without slides.
    """

    metrics: ClassificationMetrics
    stage_losses: tuple[float, ...]


def evaluate(
    recipe: HagMil,
    slides: Sequence[CohortSlide],
    classes: int,
    *,
    empty_slides: int,
    after_slide: Callable[[int], None],
) -> Evaluation:
    """Classify slides as deployment does, and compare with their labels.

    Args:
        recipe: the models.
        slides: with tissue.
        classes: number of classes.
        empty_slides: slides without tissue that belong to the same part, for the count.
        after_slide: called after each slide with the number done; may raise to stop.
    """
    probabilities = np.zeros((len(slides), classes))
    losses = np.zeros((len(slides), len(recipe.stages)))
    for place, slide in enumerate(slides):
        verdict = recipe.classify_slide(read_bag(slide))
        probabilities[place] = verdict.probabilities
        losses[place] = verdict.stage_losses
        after_slide(place + 1)
    means = tuple(losses.mean(axis=0).tolist()) if len(slides) else ()
    labels = np.array([slide.label for slide in slides], dtype=np.int64)
    metrics = classification_metrics(
        probabilities, labels, loss=means[-1] if means else None, empty_slides=empty_slides
    )
    return Evaluation(metrics, means)
