"""Verdicts on many slides, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hagmil.bundle import Hierarchy
from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.data.cohort import CohortSlide
from hagmil.trainer.data.prefetch import read_ahead
from hagmil.trainer.methods.base import Method, SlideScore
from hagmil.trainer.metrics.classification import ClassificationMetrics, classification_metrics, hierarchy_metrics


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Args:
        metrics: of the verdicts.
        losses: mean of each of the verdicts' losses, named by the method's ``validation_loss_names``; empty without
            slides.
    """

    metrics: ClassificationMetrics
    losses: tuple[float, ...]


def evaluate(
    method: Method,
    slides: Sequence[CohortSlide],
    classes: int,
    *,
    hierarchy: Hierarchy | None = None,
    empty_slides: int,
    after_slide: Callable[[int], None],
    group: ProcessGroup = SINGLE_PROCESS,
    prefetch: int = 0,
) -> Evaluation:
    """Classify slides as deployment does, and compare with their labels.

    Several processes share the slides out; each slide is classified by one of them and counted once, and all find the
    same.

    Args:
        method: the models.
        slides: with tissue.
        classes: number of classes.
        hierarchy: of the labels; None where they have one layer.
        empty_slides: slides without tissue that belong to the same part, for the count.
        after_slide: called after each slide with the number done; may raise to stop.
        group: the processes that evaluate together.
        prefetch: bags that are read ahead.
    """
    own = range(group.rank, len(slides), group.world_size)
    found: dict[int, SlideScore] = {}
    with read_ahead((slides[place] for place in own), ahead=prefetch) as bags:
        for place, bag in zip(own, bags, strict=True):
            found[place] = method.classify_slide(bag)
            after_slide(min(len(found) * group.world_size, len(slides)))
    by_place = {place: verdict for part in group.all_gather(found) for place, verdict in part.items()}
    verdicts = [by_place[place] for place in range(len(slides))]
    return measure(verdicts, [slide.label for slide in slides], classes, hierarchy=hierarchy, empty_slides=empty_slides)


def measure(
    verdicts: Sequence[SlideScore],
    labels: Sequence[int],
    classes: int,
    *,
    hierarchy: Hierarchy | None = None,
    empty_slides: int = 0,
) -> Evaluation:
    """Compare verdicts with labels.

    Args:
        verdicts: one a slide.
        labels: the slides' classes; with a hierarchy fine ones.
        classes: number of classes.
        hierarchy: of the labels; None where they have one layer.
        empty_slides: slides without tissue that belong to the same part, for the count.
    """
    truth = np.array(labels, dtype=np.int64)
    probabilities = np.array([verdict.probabilities for verdict in verdicts]).reshape(-1, classes)
    means = tuple(np.mean([verdict.losses for verdict in verdicts], axis=0).tolist()) if verdicts else ()
    loss = means[-1] if means else None
    metrics = classification_metrics(probabilities, truth, loss=loss, empty_slides=empty_slides)
    if hierarchy is None:
        return Evaluation(metrics, means)
    coarse = np.array([verdict.coarse_probabilities for verdict in verdicts], dtype=np.float64)
    layers = hierarchy_metrics(
        probabilities,
        coarse.reshape(-1, len(hierarchy.coarse)),
        truth,
        np.array(hierarchy.fine_to_coarse),
    )
    return Evaluation(metrics.model_copy(update={"hierarchy": layers}), means)
