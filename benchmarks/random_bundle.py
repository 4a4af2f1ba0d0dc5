"""A bundle of full size with random weights, for measurements that do not depend on the weights."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile

import torch

from hagmil.bundle import Backbone, Manifest, Provenance, Stage, file_entries, new_folder, open_backbone, write_manifest
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.graph import save
from hagmil.export.parity.stages import stage_graph
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.models.iat import IntegratedAttentionTransformer

SPACINGS_UM = (2.0, 1.0, 0.5)
PATCH_PX = 256
SEED = 5


def make_bundle(out: Path, backbone: Path, keep: int) -> None:
    """Write a bundle of resnet50-trunc and three stages, which share one transformer of full size.

    Args:
        out: folder of the bundle.
        backbone: folder for the exported backbone.
        keep: patches kept at every stage but the last.
    """
    export_backbone("resnet50-trunc", "random", backbone, overwrite=True)
    card = open_backbone(backbone)
    torch.manual_seed(SEED)
    graph = stage_graph(IntegratedAttentionTransformer(card.features, 2), card.features, "hag-mil")
    names = [f"{spacing:g}um" for spacing in SPACINGS_UM]
    stages = [
        Stage(name=name, spacing_um=spacing_um, keep=None if name == names[-1] else keep, onnx=f"{name}.onnx")
        for name, spacing_um in zip(names, SPACINGS_UM, strict=True)
    ]
    with new_folder(out, overwrite=True) as folder:
        copyfile(backbone / card.onnx, folder / "backbone.onnx")
        for name in names:
            save(graph, folder / f"{name}.onnx")
        write_manifest(
            folder,
            Manifest(
                kind="hag-mil",
                classes=("normal", "tumour"),
                patch_px=PATCH_PX,
                stages=tuple(stages),
                backbone=Backbone(onnx="backbone.onnx", features=card.features, name=card.name),
                tissue=TissueParameters(),
                precision="fp32",
                files=file_entries(folder),
                provenance=Provenance(
                    created=datetime.now(UTC),
                    hagmil="0",
                    versions={},
                    checkpoint_sha256="0" * 64,
                    backbone_weights="random",
                ),
                intended_use="For measurements only: the weights are random.",
            ),
        )
