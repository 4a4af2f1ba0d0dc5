"""Create the card of a checkpoint, which describes its weights for export and for readers."""

from __future__ import annotations

from hagmil._versions import __version__
from hagmil.trainer.checkpoints.checkpoint import (
    CheckpointBackbone,
    CheckpointCard,
    CheckpointStage,
    TrainingRecord,
    weights_sha256,
)
from hagmil.trainer.checkpoints.versions import versions
from hagmil.trainer.config.training import HagMilConfig, TrainingConfig
from hagmil.trainer.data.cohort import Cohort
from hagmil.trainer.methods.base import Method
from hagmil.trainer.training.state import TrainingState


def checkpoint_card(config: TrainingConfig, cohort: Cohort, method: Method, state: TrainingState) -> CheckpointCard:
    """Describe the current weights.

    Args:
        config: configuration of the training.
        cohort: the training cohort.
        method: the method with its models.
        state: current state of the training.
    """
    keep = config.cascade.keep_validation if isinstance(config, HagMilConfig) else None
    return CheckpointCard(
        hagmil=__version__,
        kind=config.kind,
        classes=cohort.classes,
        hierarchy=cohort.hierarchy,
        patch_px=cohort.patch_px,
        stages=tuple(
            CheckpointStage(name=stage.name, spacing_um=stage.spacing_um, keep=keep if stage.factor else None)
            for stage in cohort.stages
        ),
        feature_dim=cohort.feature_dim,
        model=config.model,
        backbone=_backbone(cohort),
        tissue=cohort.tissue,
        weights_sha256=weights_sha256(method.models),
        training=TrainingRecord(
            versions=versions(),
            seed=config.seed,
            recipe_sha256=config.recipe_sha256(),
            labels_sha256=state.labels_sha256,
            split_sha256=state.split_sha256,
            features_sha256=state.features_sha256,
            train_slides=len(cohort.train),
            epoch=state.epoch,
            validation=state.validation,
        ),
    )


def _backbone(cohort: Cohort) -> CheckpointBackbone | None:
    if cohort.backbone_name is None or cohort.backbone_sha256 is None:
        return None
    return CheckpointBackbone(name=cohort.backbone_name, sha256=cohort.backbone_sha256)
