"""Metrics of slide predictions during training: area under the ROC curve, accuracy and F1.

The arithmetic is that of :mod:`hagmil.trainer.metrics.resampled`, with every slide counted once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hagmil.trainer.metrics.resampled import measure


class HierarchyMetrics(BaseModel):
    """Metrics of the coarse predictions, where the labels have a hierarchy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coarse_auc: float | None = Field(description="as auc, of the coarse classes' own probabilities")
    coarse_accuracy: float | None
    coarse_macro_f1: float | None
    agreement: float | None = Field(description="share of slides whose fine prediction belongs to their coarse one")


class ClassificationMetrics(BaseModel):
    """Metrics over one part of a split; of the fine predictions, where the labels have a hierarchy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slides: int = Field(description="slides that were classified")
    empty_slides: int = Field(description="slides without tissue, which count in no metric")
    loss: float | None = Field(description="mean cross entropy of the predictions; null without slides")
    auc: float | None = Field(
        description="area under the ROC curve, one against rest, macro average; null unless every class occurs"
    )
    accuracy: float | None = Field(description="null without slides")
    macro_f1: float | None = Field(description="mean F1 over all classes; null unless every class occurs")
    hierarchy: HierarchyMetrics | None = Field(default=None, description="null without a hierarchy of labels")


def hierarchy_metrics(
    fine: NDArray[np.float64],
    coarse: NDArray[np.float64],
    labels: NDArray[np.int64],
    fine_to_coarse: NDArray[np.int64],
) -> HierarchyMetrics:
    """Compare coarse predictions with the coarse labels and with the fine predictions.

    Args:
        fine: float64 (slides, fine), rows sum to 1.
        coarse: float64 (slides, coarse), rows sum to 1.
        labels: int64 (slides,), fine classes.
        fine_to_coarse: int64 (fine,), the coarse class of each fine class.

    Returns:
        The metrics; None where the slides do not define one.
    """
    own = classification_metrics(coarse, fine_to_coarse[labels], loss=None, empty_slides=0)
    agree = fine_to_coarse[fine.argmax(axis=1)] == coarse.argmax(axis=1)
    return HierarchyMetrics(
        coarse_auc=own.auc,
        coarse_accuracy=own.accuracy,
        coarse_macro_f1=own.macro_f1,
        agreement=float(agree.mean()) if len(agree) else None,
    )


def classification_metrics(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, loss: float | None, empty_slides: int
) -> ClassificationMetrics:
    """Compare predictions with labels.

    Args:
        probabilities: float64 (slides, classes), rows sum to 1.
        labels: int64 (slides,).
        loss: mean cross entropy over the slides.
        empty_slides: number of slides without tissue, which have no prediction.

    Returns:
        The metrics; None where the slides do not define one.
    """
    slides = len(probabilities)
    if slides == 0:
        return ClassificationMetrics(
            slides=0, empty_slides=empty_slides, loss=None, auc=None, accuracy=None, macro_f1=None
        )
    measures = measure(probabilities, labels)
    return ClassificationMetrics(
        slides=slides,
        empty_slides=empty_slides,
        loss=loss,
        auc=_defined(measures.auc),
        accuracy=_defined(measures.accuracy),
        macro_f1=_defined(measures.macro_f1),
    )


def _defined(values: NDArray[np.float64]) -> float | None:
    """Return the only value, or None if it is NaN."""
    value = float(values[0])
    return None if math.isnan(value) else value
