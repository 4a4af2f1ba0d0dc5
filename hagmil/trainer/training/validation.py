"""Classification of many slides, and metrics of the results."""

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
    """Result of an evaluation.

    Args:
        metrics: metrics over slides.
        losses: mean of each loss, named by the method's ``validation_loss_names``; empty without slides.
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
    """Classify slides as in deployment, and compare the results with their labels.

    Several processes share the slides: each slide is classified by one process and counted once, and all processes
    return the same result.

    Args:
        method: the method with its models.
        slides: slides with tissue.
        classes: number of classes.
        hierarchy: hierarchy of the labels; None for one layer.
        empty_slides: number of slides without tissue in the same part; reported only.
        after_slide: called after each slide with the number of finished slides; may raise to stop.
        group: the processes that evaluate together.
        prefetch: number of bags that are read in advance.
    """
    own = range(group.rank, len(slides), group.world_size)
    found: dict[int, SlideScore] = {}
    with read_ahead((slides[place] for place in own), ahead=prefetch) as bags:
        for place, bag in zip(own, bags, strict=True):
            found[place] = method.classify_slide(bag)
            after_slide(min(len(found) * group.world_size, len(slides)))
    by_place = {place: score for part in group.all_gather(found) for place, score in part.items()}
    scores = [by_place[place] for place in range(len(slides))]
    return measure(scores, [slide.label for slide in slides], classes, hierarchy=hierarchy, empty_slides=empty_slides)


def measure(
    scores: Sequence[SlideScore],
    labels: Sequence[int],
    classes: int,
    *,
    hierarchy: Hierarchy | None = None,
    empty_slides: int = 0,
) -> Evaluation:
    """Compare scores with labels.

    Args:
        scores: one for each slide.
        labels: classes of the slides; with a hierarchy, fine classes.
        classes: number of classes.
        hierarchy: hierarchy of the labels; None for one layer.
        empty_slides: number of slides without tissue in the same part; reported only.
    """
    truth = np.array(labels, dtype=np.int64)
    probabilities = np.array([score.probabilities for score in scores]).reshape(-1, classes)
    means = tuple(np.mean([score.losses for score in scores], axis=0).tolist()) if scores else ()
    loss = means[-1] if means else None
    metrics = classification_metrics(probabilities, truth, loss=loss, empty_slides=empty_slides)
    if hierarchy is None:
        return Evaluation(metrics, means)
    coarse = np.array([score.coarse_probabilities for score in scores], dtype=np.float64)
    layers = hierarchy_metrics(
        probabilities,
        coarse.reshape(-1, len(hierarchy.coarse)),
        truth,
        np.array(hierarchy.fine_to_coarse),
    )
    return Evaluation(metrics.model_copy(update={"hierarchy": layers}), means)
