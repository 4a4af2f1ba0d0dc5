"""Inputs of an evaluation: the properties of the model, and the slides of one part of a split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hagmil.bundle import Hierarchy
from hagmil.errors import DataError
from hagmil.spec import Kind
from hagmil.trainer.checkpoints.checkpoint import Checkpoint
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.cohort import Cohort, CohortSlide, CohortStage, assemble
from hagmil.trainer.data.feature_sources import source_of
from hagmil.trainer.data.labels import Part, Split
from hagmil.trainer.data.spacings import SPACING_TOLERANCE
from hagmil.trainer.data.tables import Tables, read_tables


@dataclass(frozen=True, slots=True)
class EvaluatedStageSpec:
    """One stage of a model: name, spacing, and number of kept patches (None for the last stage)."""

    name: str
    spacing_um: float
    keep: int | None


@dataclass(frozen=True, slots=True)
class EvaluatedModelSpec:
    """Properties of a model to be evaluated, whether it is a checkpoint or a bundle.

    Args:
        kind: the family of models.
        classes: names in the order of the logits.
        hierarchy: hierarchy of the classes; None without one.
        stages: coarse to fine.
        feature_dim: length of a feature vector.
        patch_px: side of a patch in pixels.
        backbone_sha256: digest of the backbone's graph; None if unknown.
    """

    kind: Kind
    classes: tuple[str, ...]
    hierarchy: Hierarchy | None
    stages: tuple[EvaluatedStageSpec, ...]
    feature_dim: int
    patch_px: int
    backbone_sha256: str | None


@dataclass(frozen=True, slots=True)
class EvaluationPart:
    """The slides of one part of a split.

    Args:
        name: the part.
        stages: stages of the features, coarse to fine.
        slides: slides with tissue.
        empty: names of the slides without tissue.
        cases: patient of each slide.
    """

    name: Part
    stages: tuple[CohortStage, ...]
    slides: tuple[CohortSlide, ...]
    empty: tuple[str, ...]
    cases: Mapping[str, str]


def checkpoint_spec(checkpoint: Checkpoint) -> EvaluatedModelSpec:
    """Return the properties of a checkpoint's models."""
    card = checkpoint.card
    return EvaluatedModelSpec(
        kind=card.kind,
        classes=card.classes,
        hierarchy=card.hierarchy,
        stages=tuple(EvaluatedStageSpec(stage.name, stage.spacing_um, stage.keep) for stage in card.stages),
        feature_dim=card.feature_dim,
        patch_px=card.patch_px,
        backbone_sha256=card.backbone.sha256 if card.backbone else None,
    )


def open_part(config: TrainingConfig, spec: EvaluatedModelSpec, part: Part) -> EvaluationPart:
    """Collect the slides of one part and check that their features match the model.

    Features of the other parts need not exist. The classes are those of the model, not of the configuration.

    Args:
        config: locations of features, labels and split.
        spec: the model.
        part: train, val or test.

    Raises:
        DataError: tables or features cannot be read or are inconsistent, a label is unknown, the part has no slide, or
            the features differ from the model in stages, patch size, length or backbone.
    """
    data = config.data
    tables = read_tables(data.labels, data.split, fold=data.fold, classes=spec.classes)
    wanted = tables.split.part(part)
    if not wanted:
        raise DataError(f'split "{data.split}" has no slide in its {part} part; choose another --part')
    only = Split(**{name: wanted if name == part else () for name in ("train", "val", "test")})
    narrowed = Tables(tables.labels, only, tables.labels_sha256, tables.split_sha256)
    cohort = assemble(source_of(data), narrowed, classes=spec.classes, hierarchy=spec.hierarchy, for_training=False)
    _check_features(spec, cohort)
    slides: dict[Part, tuple[CohortSlide, ...]] = {"train": cohort.train, "val": cohort.val, "test": cohort.test}
    cases = {slide_id: tables.labels[slide_id].case_id for slide_id in wanted}
    return EvaluationPart(part, cohort.stages, slides[part], cohort.empty[part], cases)


def _check_features(spec: EvaluatedModelSpec, cohort: Cohort) -> None:
    expected = [(stage.name, f"{stage.spacing_um:g} um/px") for stage in spec.stages]
    found = [(stage.name, f"{stage.spacing_um:g} um/px") for stage in cohort.stages]
    same_stages = len(expected) == len(found) and all(
        one.name == other.name and math.isclose(one.spacing_um, other.spacing_um, rel_tol=SPACING_TOLERANCE)
        for one, other in zip(spec.stages, cohort.stages, strict=True)
    )
    backbones = (cohort.backbone_sha256, spec.backbone_sha256)  # unknown for features of the published codes
    differences: list[tuple[str, bool, object, object]] = [
        ("stages", same_stages, found, expected),
        ("patch size", cohort.patch_px == spec.patch_px, cohort.patch_px, spec.patch_px),
        ("feature length", cohort.feature_dim == spec.feature_dim, cohort.feature_dim, spec.feature_dim),
        ("backbone", None in backbones or backbones[0] == backbones[1], *backbones),
    ]
    for what, same, in_features, in_model in differences:
        if not same:
            raise DataError(
                f"{what} of the features: {in_features}; of the model: {in_model}; evaluate the model on features that "
                "were extracted with the same backbone, stages and patch size as those of its training"
            )
