"""How well a model classifies slides: area under the curve, accuracy, F1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import f1_score, roc_auc_score

from hagmil._models import FrozenModel


class HierarchyMetrics(FrozenModel):
    """What was measured of the coarse verdicts, where labels have a hierarchy."""

    coarse_auc: float | None = Field(description="as auc, of the coarse classes' own probabilities")
    coarse_accuracy: float | None
    coarse_macro_f1: float | None
    agreement: float | None = Field(description="share of slides whose fine verdict belongs to their coarse verdict")


class ClassificationMetrics(FrozenModel):
    """What was measured over one part of a split; with a hierarchy of labels of the fine verdicts."""

    slides: int = Field(description="slides that were classified")
    empty_slides: int = Field(description="slides without tissue, which have no verdict and are in no number here")
    loss: float | None = Field(description="mean cross entropy of the verdict; null without slides")
    auc: float | None = Field(
        description="area under the ROC curve, one against rest, macro; null unless every class occurs"
    )
    accuracy: float | None = Field(description="null without slides")
    macro_f1: float | None = Field(description="mean F1 over all classes; null without slides")
    hierarchy: HierarchyMetrics | None = Field(default=None, description="null where labels have one layer")


def hierarchy_metrics(
    fine: NDArray[np.float64],
    coarse: NDArray[np.float64],
    labels: NDArray[np.int64],
    fine_to_coarse: NDArray[np.int64],
) -> HierarchyMetrics:
    """Measure coarse verdicts against coarse labels, and against fine verdicts.

    Args:
        fine: float64 (slides, fine), rows sum to 1.
        coarse: float64 (slides, coarse), rows sum to 1.
        labels: int64 (slides,), fine classes.
        fine_to_coarse: int64 (fine,), for each fine class its coarse class.
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
