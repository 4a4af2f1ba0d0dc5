"""Checkpoints of untrained heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hagmil.bundle import BackboneCard
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.checkpoints.checkpoint import (
    CheckpointBackbone,
    CheckpointCard,
    CheckpointStage,
    ImportRecord,
    weights_sha256,
    write_checkpoint,
)
from hagmil.trainer.models.registry import ModelSizes, model_kind

CLASSES = ("a", "b", "c")
SMALL: dict[str, dict[str, Any]] = {
    "mean": {"hidden_widths": [8]},
    "max": {"hidden_widths": [8]},
    "abmil": {"hidden_widths": [8], "gate_width": 4},
    "clam-sb": {"hidden_widths": [8], "gate_width": 4},
    "clam-mb": {"hidden_widths": [8], "gate_width": 4, "gated": False},
    "transmil": {"hidden_widths": [8], "heads": 2, "value_kernel": 5},
    "dsmil": {"query_width": 4, "negative_class": True},
    "stamp": {"width": 8, "heads": 2, "inner_width": 8},
}
"""Small sizes of each head of this package."""


def write_head_checkpoint(folder: Path, kind: str, backbone: BackboneCard, *, patch_px: int = 32) -> CheckpointCard:
    """Write a head with random weights, small sizes and one stage at 0.5 um/px."""
    torch.manual_seed(0)
    found = model_kind(kind)
    config = found.config.model_validate(SMALL.get(kind, {}))
    models = found.build(config, ModelSizes(backbone.features, len(CLASSES)))
    card = CheckpointCard(
        hagmil="0",
        kind=kind,
        classes=CLASSES,
        patch_px=patch_px,
        stages=(CheckpointStage(name="only", spacing_um=0.5, keep=None),),
        feature_dim=backbone.features,
        model=config,
        backbone=CheckpointBackbone(name=backbone.name, sha256=backbone.sha256),
        tissue=TissueParameters(),
        weights_sha256=weights_sha256(models),
        imported=ImportRecord(versions={}, source_name="none", source_sha256="0" * 64),
    )
    write_checkpoint(folder, card, models)
    return card
