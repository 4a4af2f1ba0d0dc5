"""Small checkpoints of untrained models."""

from __future__ import annotations

from pathlib import Path

import torch

from hagmil._versions import __version__
from hagmil.bundle import BackboneCard, Certainty, Tested, TestedKeep
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.checkpoints.checkpoint import (
    CheckpointBackbone,
    CheckpointCard,
    CheckpointStage,
    TrainingRecord,
    weights_sha256,
    write_checkpoint,
)
from hagmil.trainer.metrics.classification import ClassificationMetrics
from hagmil.trainer.models.additive import AdditiveStageModel
from hagmil.trainer.models.build import cascade_models
from hagmil.trainer.models.iat import IatConfig

WIDTHS = (16, 32)
SMALL = IatConfig(widths=WIDTHS, heads=4, hidden_width=16, gate_width=8, value_kernel=5)

TESTED = Tested(
    part="val",
    slides=9,
    smallest_bag=12,
    largest_bag=345,
    keeps=tuple(
        TestedKeep(
            keep=keep, slides=9, right=0.9, auc=None, agreement=agreement, patches_read=200.0, margins={"tumour": 1.0}
        )
        for keep, agreement in ((4, 0.5), (20, 1.0), (None, 1.0))
    ),
    held_from=20,
)
CERTAINTY = Certainty(
    threshold=0.25,
    method="quantile",
    level=0.1,
    keeps=(4, 8, 16, 32),
    slides=9,
    smallest_bag=12,
    largest_bag=345,
    unsure=0.125,
    sure_right=1.0,
)


def additive_config(rows: str) -> IatConfig:
    """Return the sizes of ``SMALL`` with the additive read-out over ``transformer`` or ``independent`` rows."""
    return IatConfig.model_validate({**SMALL.model_dump(), "readout": "additive", "rows": rows})


def additive_model(rows: str, feature_dim: int) -> AdditiveStageModel:
    """Make an untrained additive stage model with three classes."""
    torch.manual_seed(0)
    return AdditiveStageModel(feature_dim, 3, additive_config(rows)).eval()


def write_small_checkpoint(
    folder: Path,
    backbone: BackboneCard,
    *,
    stages: tuple[str, ...] = ("coarse", "fine"),
    patch_px: int = 64,
    gain: float = 1.0,
    config: IatConfig = SMALL,
) -> CheckpointCard:
    """Write a checkpoint of untrained models.

    Args:
        folder: output folder of the checkpoint.
        backbone: card of the backbone to record in the checkpoint.
        stages: names, coarse to fine; the finest has 0.5 um/px, and each coarser one twice the spacing.
        patch_px: side of a patch in pixels.
        gain: factor for the weights of queries, keys and values; a large one makes attention nearly one-hot.
        config: form and sizes of the models.
    """
    torch.manual_seed(1)
    models = cascade_models(config, feature_dim=backbone.features, classes=2, hierarchy=None, stages=len(stages))
    with torch.no_grad():
        for name, weight in (named for model in models for named in model.named_parameters()):
            if name.endswith("to_qkv.weight"):
                weight.mul_(gain)
    last = len(stages) - 1
    card = CheckpointCard(
        hagmil=__version__,
        kind="hag-mil",
        classes=("normal", "tumour"),
        patch_px=patch_px,
        stages=tuple(
            CheckpointStage(name=name, spacing_um=0.5 * 2 ** (last - index), keep=None if index == last else 20)
            for index, name in enumerate(stages)
        ),
        feature_dim=backbone.features,
        model=config,
        backbone=CheckpointBackbone(name=backbone.name, sha256=backbone.sha256),
        tissue=TissueParameters(),
        weights_sha256=weights_sha256(models),
        tested=TESTED if last else None,
        certainty=CERTAINTY if last else None,
        training=TrainingRecord(
            versions={"torch": "2"},
            seed=1,
            recipe_sha256="0" * 64,
            labels_sha256="1" * 64,
            split_sha256="2" * 64,
            features_sha256="3" * 64,
            train_slides=4,
            epoch=2,
            validation=ClassificationMetrics(slides=2, empty_slides=0, loss=0.5, auc=0.875, accuracy=0.5, macro_f1=0.5),
        ),
    )
    write_checkpoint(folder, card, models)
    return card
