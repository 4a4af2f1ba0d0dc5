"""How well a model classifies slides: area under the curve, accuracy, F1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import f1_score, roc_auc_score


class ClassificationMetrics(BaseModel):
    """What was measured over one part of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slides: int = Field(description="slides that were classified")
    empty_slides: int = Field(description="slides without tissue, which have no verdict and are in no number here")
    loss: float | None = Field(description="mean cross entropy of the verdict; null without slides")
    auc: float | None = Field(
        description="area under the ROC curve, one against rest, macro; null unless every class occurs"
    )
    accuracy: float | None = Field(description="null without slides")
    macro_f1: float | None = Field(description="mean F1 over all classes; null without slides")


def classification_metrics(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, loss: float | None, empty_slides: int
) -> ClassificationMetrics:
    """Measure verdicts against labels.

    Args:
        probabilities: float64 (slides, classes), rows sum to 1.
        labels: int64 (slides,).
        loss: mean cross entropy over the slides.
        empty_slides: slides that had no tissue and therefore no verdict.

    Returns:
        The metrics; those that the slides do not define are None.
    """
    slides, classes = probabilities.shape
    if slides == 0:
        return ClassificationMetrics(
            slides=0, empty_slides=empty_slides, loss=None, auc=None, accuracy=None, macro_f1=None
        )
    predictions = probabilities.argmax(axis=1)
    return ClassificationMetrics(
        slides=slides,
        empty_slides=empty_slides,
        loss=loss,
        auc=_auc(probabilities, labels),
        accuracy=float((predictions == labels).mean()),
        macro_f1=float(f1_score(labels, predictions, labels=np.arange(classes), average="macro", zero_division=0)),
    )


def _auc(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, labels=np.arange(classes), multi_class="ovr", average="macro"))
