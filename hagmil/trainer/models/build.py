"""The models of a training or a checkpoint, from their sizes."""

from __future__ import annotations

from hagmil.bundle import Hierarchy
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

ModelConfig = IatConfig | HmilConfig
"""Sizes of a stage's model, of either method."""


def class_counts(classes: int, hierarchy: Hierarchy | None, stages: int) -> tuple[int, ...]:
    """How many classes each stage of a cascade tells apart, coarse to fine.

    Args:
        classes: of the verdict.
        hierarchy: with one, all stages but the finest tell its coarse classes apart.
        stages: how many there are.
    """
    coarse = classes if hierarchy is None else len(hierarchy.coarse)
    return (*(coarse,) * (stages - 1), classes)


def cascade_models(
    config: IatConfig, *, feature_dim: int, classes: int, hierarchy: Hierarchy | None, stages: int
) -> list[IntegratedAttentionTransformer]:
    """HAG-MIL's models, coarse to fine.

    Args:
        config: sizes of every stage's model.
        feature_dim: length of a feature vector.
        classes: number of classes of the verdict.
        hierarchy: of the labels; None for one layer.
        stages: how many there are.
    """
    counts = class_counts(classes, hierarchy, stages)
    return [IntegratedAttentionTransformer(feature_dim, count, config) for count in counts]


def hmil_model(config: HmilConfig, *, feature_dim: int, hierarchy: Hierarchy) -> HierarchicalMil:
    """HMIL's one model."""
    return HierarchicalMil(feature_dim, len(hierarchy.coarse), len(hierarchy.fine), config)
