"""Create the stage models of HAG-MIL and HMIL from their sizes."""

from __future__ import annotations

from hagmil.bundle import Hierarchy
from hagmil.trainer.models.additive import AdditiveStageModel
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

CascadeModel = IntegratedAttentionTransformer | AdditiveStageModel
"""A stage model of HAG-MIL, with either read-out."""


def class_counts(classes: int, hierarchy: Hierarchy | None, stages: int) -> tuple[int, ...]:
    """Number of classes of each stage model of a cascade, coarse to fine.

    Args:
        classes: number of classes of the verdict.
        hierarchy: hierarchy of the labels; with one, all stages but the finest have the coarse classes.
        stages: number of stages.
    """
    coarse = classes if hierarchy is None else len(hierarchy.coarse)
    return (*(coarse,) * (stages - 1), classes)


def cascade_models(
    config: IatConfig, *, feature_dim: int, classes: int, hierarchy: Hierarchy | None, stages: int
) -> list[CascadeModel]:
    """Create the stage models of HAG-MIL, coarse to fine.

    Args:
        config: form and sizes of every stage model.
        feature_dim: length of a feature vector.
        classes: number of classes of the verdict.
        hierarchy: hierarchy of the labels; None for one layer.
        stages: number of stages.
    """
    counts = class_counts(classes, hierarchy, stages)
    model = AdditiveStageModel if config.readout == "additive" else IntegratedAttentionTransformer
    return [model(feature_dim, count, config) for count in counts]


def hmil_model(config: HmilConfig, *, feature_dim: int, hierarchy: Hierarchy) -> HierarchicalMil:
    """Create the model of HMIL."""
    return HierarchicalMil(feature_dim, len(hierarchy.coarse), len(hierarchy.fine), config)
