"""Tiny cohorts with a hierarchy of labels: four fine classes, each with a higher value of one feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hagmil.features import SlideFeatures, StageFeatures, read_features, write_features
from tests.trainer.cohorts import PARTS, write_slide, write_split

COARSE = ("benign", "malignant")
FINE_TO_COARSE = {"normal": "benign", "adenoma": "benign", "low": "malignant", "high": "malignant"}
HIERARCHY = {"coarse": list(COARSE), "fine": list(FINE_TO_COARSE), "fine_to_coarse": dict(FINE_TO_COARSE)}


def write_fine_slide(
    folder: Path,
    slide_id: str,
    label: int,
    *,
    patches: int,
    stages: Sequence[tuple[str, float]],
    backbone_sha256: str = "b" * 64,
) -> None:
    """Write one feature file; at every stage, feature ``label`` is higher in a third of the patches."""
    write_slide(folder, slide_id, 0, patches=patches, stages=stages, backbone_sha256=backbone_sha256)
    slide = read_features(folder / f"{slide_id}.h5")
    raised = []
    for stage in slide.stages:
        features = stage.features.astype(np.float32)
        features[: (len(features) + 2) // 3, label] += 6.0
        raised.append(
            StageFeatures(stage.name, stage.coords, features, stage.patch_px, stage.patch_level0, stage.spacing_um)
        )
    write_features(folder / f"{slide_id}.h5", SlideFeatures(slide.header, tuple(raised)))


def write_hierarchy_cohort(
    folder: Path,
    *,
    parts: Mapping[str, int] = PARTS,
    stages: Sequence[tuple[str, float]] = (("only", 0.5),),
    backbone_sha256: str = "b" * 64,
) -> dict[str, Any]:
    """Write a cohort with the four fine classes in turn, and return the configuration of an HMIL training as a tree."""
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    lines = ["slide_id,case_id,label"]
    for part, count in parts.items():
        for index in range(count):
            slide_id, label = f"{part}-{index}", index % len(FINE_TO_COARSE)
            names[part].append(slide_id)
            lines.append(f"{slide_id},case-{slide_id},{tuple(FINE_TO_COARSE)[label]}")
            write_fine_slide(
                folder / "features",
                slide_id,
                label,
                patches=2 + index,
                stages=stages,
                backbone_sha256=backbone_sha256,
            )
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    write_split(folder / "split.csv", names)
    return {
        "kind": "hmil",
        "out": str(folder / "run"),
        "data": {
            "features": str(folder / "features"),
            "labels": str(folder / "labels.csv"),
            "split": str(folder / "split.csv"),
        },
        "hierarchy": HIERARCHY,
        "model": {"bottleneck_width": 8, "fine_width": 8, "coarse_gate_width": 8, "fine_gate_width": 8},
        "optimiser": {"learning_rate": 1e-2},
        "schedule": {"max_epochs": 3, "batch_size": 3},
        "threads": 1,
    }


def cascade_with_hierarchy(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a HAG-MIL training on the same cohort."""
    return {
        **{key: tree[key] for key in ("out", "data", "hierarchy", "threads")},
        "model": {
            "widths": [8],
            "heads": 4,
            "hidden_width": 8,
            "gate_width": 4,
            "value_kernel": 5,
            "gate_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "loss": {"k_sample": 2},
        "cascade": {"keep_train": 4, "keep_validation": 5},
        "optimiser": {"learning_rate": 3e-3},
        "schedule": {"max_epochs": 3},
    }
