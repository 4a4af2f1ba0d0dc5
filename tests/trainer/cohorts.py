"""Tiny cohorts on disk: feature files, labels and a split, with clearly different classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures, write_features
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.config.training import HagMilConfig, TrainingConfig, parse_config
from hagmil.trainer.data.cohort import Bag, open_training_cohort, read_bag
from hagmil.trainer.methods.hag_mil import HagMil
from hagmil.trainer.methods.registry import new_method

FEATURE_DIM = 6
STAGES = (("low", 1.0), ("high", 0.5))
THREE_STAGES = (("low", 2.0), ("middle", 1.0), ("high", 0.5))
PARTS = {"train": 4, "val": 2, "test": 2}
CLASSES = ("normal", "tumour")


def write_slide(
    folder: Path,
    slide_id: str,
    label: int,
    *,
    patches: int = 3,
    stages: Sequence[tuple[str, float]] = STAGES,
    seed: int = 0,
    extra_rows: int = 0,
    backbone_sha256: str = "b" * 64,
    value: float | None = None,
    width: int = FEATURE_DIM,
) -> None:
    """Write one feature file; at label 1, a third of the patches of every stage have a higher first feature."""
    generator = np.random.default_rng([seed, label, *slide_id.encode()])
    bags = []
    for index, (name, spacing_um) in enumerate(stages):
        factor = round(stages[0][1] / spacing_um)
        rows = patches * factor**2 + (extra_rows if index else 0)
        features = generator.standard_normal((rows, width))
        features[: (rows + 2) // 3, 0] += 4.0 * label
        if value is not None:
            features[:] = value
        bags.append(
            StageFeatures(
                name=name,
                coords=np.zeros((rows, 2), np.int64),
                features=features.astype(np.float16) if index else features.astype(np.float32),
                patch_px=64,
                patch_level0=round(64 * spacing_um / 0.5),
                spacing_um=spacing_um,
            )
        )
    header = FeatureHeader(
        slide_id=slide_id,
        slide_name=f"{slide_id}.tif",
        slide_sha256="a" * 64,
        slide_spacing_um=0.5,
        spacing_source="metadata",
        backbone_name="tiny",
        backbone_sha256=backbone_sha256,
        tissue=TissueParameters(),
        stages=tuple(name for name, _ in stages),
    )
    write_features(folder / f"{slide_id}.h5", SlideFeatures(header, tuple(bags)))


def write_cohort(
    folder: Path, *, parts: Mapping[str, int] = PARTS, stages: Sequence[tuple[str, float]] = STAGES
) -> dict[str, Any]:
    """Write a cohort with alternating classes, and return the configuration of a training on it as a tree."""
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    lines = ["slide_id,case_id,label"]
    for part, count in parts.items():
        for index in range(count):
            slide_id, label = f"{part}-{index}", index % 2
            names[part].append(slide_id)
            lines.append(f"{slide_id},case-{slide_id},{CLASSES[label]}")
            write_slide(folder / "features", slide_id, label, patches=1 + index, stages=stages)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    write_split(folder / "split.csv", names)
    return {
        "out": str(folder / "run"),
        "data": {
            "features": str(folder / "features"),
            "labels": str(folder / "labels.csv"),
            "split": str(folder / "split.csv"),
        },
        "classes": list(CLASSES),
        "model": {"widths": [8], "heads": 4, "hidden_width": 8, "gate_width": 4, "value_kernel": 5},
        "loss": {"k_sample": 2},
        "cascade": {"keep_train": 4, "keep_validation": 5},
        "optimiser": {"learning_rate": 3e-3},
        "schedule": {"max_epochs": 3},
        "threads": 1,
    }


def write_split(path: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Write a split as CLAM does, with an unnamed index and columns of different lengths."""
    lines = [",train,val,test"]
    for index in range(max(len(column) for column in names.values())):
        cells = [column[index] if index < len(column) else "" for column in names.values()]
        lines.append(",".join([str(index), *cells]))
    path.write_text("\n".join(lines) + "\n")


def configured(tree: Mapping[str, Any], **changes: Any) -> TrainingConfig:
    """The configuration of a tree with some keys replaced."""
    return parse_config({**tree, **changes}, source="test")


def hag_mil_and_bag(tree: Mapping[str, Any], **changes: Any) -> tuple[HagMil, Bag]:
    """HAG-MIL without dropout and with initial weights, and the last training slide."""
    model = {**tree["model"], "gate_dropout": 0.0, "attention_dropout": 0.0}
    config = configured(tree, **{"model": model, **changes})
    assert isinstance(config, HagMilConfig)
    cohort = open_training_cohort(config)
    torch.manual_seed(0)
    method = new_method(config, cohort)
    assert isinstance(method, HagMil)
    return method, read_bag(cohort.train[-1])
