"""Verdicts over the number of kept patches and the size of the slide, on phantoms.

    nice -n 10 python -m benchmarks.keep_stability --recipe additive-teach --seeds 20 21 22 --folder stability

1. Make 96 phantoms from one seed and extract their features with the ``tiny`` backbone of the demonstration. For each
   seed, split them by patient into training and validation, train with a recipe, and export a bundle.
2. Make test phantoms of several sizes, each size from a seed of its own; all training seeds share them.
3. Run each bundle on the features of the test phantoms with each number of kept patches
   (:mod:`benchmarks.stability`).

Phantoms, features, bundles and readings stay in the folder, and later calls use them again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.features_cascade import extract_cohort, phantom_cohort
from benchmarks.machine import machine
from benchmarks.stability import (
    KEEPS,
    RECIPES,
    SlideReadings,
    certainty,
    other_methods,
    read_part,
    rows_by_keep,
    stored_readings,
    trained,
)
from hagmil.bundle import open_bundle
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.evaluate_bundle import bundle_runner, bundle_spec
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.extract import ExtractOptions, Extractor, parse_stages
from hagmil.trainer.config.training import HagMilConfig, parse_config
from hagmil.trainer.data.labels import read_labels
from hagmil.trainer.data.splits import make_splits, write_splits
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluationPart, open_part

STAGES, PATCH_PX = "2,1,0.5", 64
TRAINING_SLIDES, VALIDATION_SHARE = 96, 0.3
TESTS = {2048: (40, 21), 4096: (40, 74), 8192: (20, 77)}
"""Number and seed of the test phantoms of each size."""
OTHER_TESTS = (24, 78)
EPOCHS, PATIENCE = 24, 8


@dataclass(frozen=True, slots=True)
class Cohort:
    """Phantoms and their features.

    Args:
        features: folder of the features.
        labels: labels.csv.
    """

    features: Path
    labels: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, default="additive-teach")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--cohort-seed", type=int, default=20, help="seed of the phantoms for training and validation")
    parser.add_argument("--train-sizes", type=int, nargs="+", default=[2048], help="sides of the training phantoms")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(TESTS), help="sides of the test phantoms")
    parser.add_argument("--keeps", type=int, nargs="+", default=list(KEEPS))
    parser.add_argument("--slides", type=int, default=TRAINING_SLIDES, help="for training and validation, of each size")
    parser.add_argument("--test-slides", type=int, help="test phantoms of each size; default 40, and 20 of 8,192 px")
    parser.add_argument("--others", action="store_true", help="also measure what others do with the same features")
    parser.add_argument("--folder", type=Path, required=True, help="keeps phantoms, features and models")
    parser.add_argument("--prepare", action="store_true", help="make phantoms and features, and stop")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tests = {
        str(size): _cohort(arguments.folder, arguments.test_slides or slides, size, seed)
        for size, (slides, seed) in ((size, TESTS.get(size, OTHER_TESTS)) for size in arguments.sizes)
    }
    runs = []
    for train_size in arguments.train_sizes:
        cohort = _cohort(arguments.folder, arguments.slides, train_size, arguments.cohort_seed)
        for seed in arguments.seeds:
            if not arguments.prepare:
                run = measure_seed(
                    arguments.folder, cohort, tests, arguments.recipe, seed, arguments.keeps, arguments.others
                )
                runs.append({"train_size": train_size, **run})
                print(summary(runs[-1]), flush=True)
    if runs:
        report = {
            "machine": machine(),
            "recipe": arguments.recipe,
            "cohort_seed": arguments.cohort_seed,
            "runs": runs,
            "means": means(runs),
        }
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measure_seed(
    folder: Path,
    cohort: Cohort,
    tests: dict[str, Cohort],
    recipe: str,
    seed: int,
    keeps: Sequence[int],
    others: bool = False,
) -> dict[str, Any]:
    """Train and export with one seed, and read the test phantoms of every size."""
    out = folder / "runs" / f"{cohort.features.name}-{recipe}-{seed}"
    config = configuration(out, cohort, recipe, seed)
    figures = trained(config)
    if not (out / "bundle" / "bundle.json").exists():
        export_bundle(config.out, folder / "backbone", out / "bundle", overwrite=True)
    bundle = open_bundle(out / "bundle")
    spec, run = bundle_spec(bundle), bundle_runner(bundle, threads=1)

    def opened(chosen: HagMilConfig, model: EvaluatedModelSpec, name: str) -> EvaluationPart:
        if name in tests:
            test = tests[name]
            paths = {"features": test.features, "labels": test.labels, "split": _test_split(test)}
            data = chosen.data.model_copy(update=paths)
            return open_part(chosen.model_copy(update={"data": data}), model, "test")
        return open_part(chosen, model, "train" if name == "train" else "val")

    def readings(name: str) -> list[SlideReadings]:
        path = out / f"readings-{name}.json"
        return stored_readings(path, lambda: read_part(opened(config, spec, name), spec, run, keeps))

    validation = readings("val")
    sizes = {
        size: {"keeps": rows_by_keep(readings(size)), "certainty": certainty(validation, readings(size))}
        for size in tests
    }
    found = {"seed": seed, **figures, "sizes": sizes}
    return {**found, "others": other_methods(config, opened, list(tests))} if others else found


def configuration(out: Path, cohort: Cohort, recipe: str, seed: int) -> HagMilConfig:
    """The configuration of one training: that of the demonstration, with the settings of a recipe."""
    splits = make_splits(read_labels(cohort.labels), val_share=VALIDATION_SHARE, test_share=0, seed=seed)
    (split,) = write_splits(out / "splits", splits)
    tree = {
        "out": str(out / "run"),
        "data": {"features": str(cohort.features), "labels": str(cohort.labels), "split": str(split)},
        "classes": ["normal", "tumour"],
        **RECIPES[recipe],
        "optimiser": {"learning_rate": 1e-3},
        "schedule": {"max_epochs": EPOCHS, "patience": PATIENCE},
        "seed": seed,
        "threads": 1,
    }
    config = parse_config(tree, source="benchmark")
    assert isinstance(config, HagMilConfig)
    return config


def _cohort(folder: Path, slides: int, size_px: int, seed: int) -> Cohort:
    """Make phantoms and extract their features, unless they exist."""
    name = f"phantoms-{slides}-of-{size_px}-seed-{seed}"
    phantoms = phantom_cohort(folder / name, slides, size_px, seed)
    backbone = folder / "backbone"
    if not (backbone / "backbone.json").exists():
        export_backbone("tiny", None, backbone, overwrite=True)
    extractor = Extractor.open(backbone, ExtractOptions(stages=parse_stages(STAGES), patch_px=PATCH_PX))
    features = folder / f"features-{slides}-of-{size_px}-seed-{seed}"
    extract_cohort(phantoms, extractor, features)
    return Cohort(features, folder / name / "labels.csv")


def _test_split(cohort: Cohort) -> Path:
    path = cohort.labels.with_name("test.csv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("train", "val", "test"))
        writer.writerows(("", "", slide_id) for slide_id in read_labels(cohort.labels))
    return path


def means(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the runs for each size and K; sums of the sure verdicts."""
    found = {}
    for size in runs[0]["sizes"]:
        of_runs = [run["sizes"][size] for run in runs]
        keeps = [
            {
                key: rows[0][key] if key == "keep" else round(float(np.mean([row[key] for row in rows])), 4)
                for key in rows[0]
            }
            for rows in zip(*(each["keeps"] for each in of_runs), strict=True)
        ]
        sums = {key: sum(each["certainty"][key] for each in of_runs) for key in ("slides", "sure", "sure_right")}
        read = round(float(np.mean([each["certainty"]["patches_read"] for each in of_runs])), 1)
        found[size] = {"keeps": keeps, "certainty": {**sums, "patches_read": read}}
    return found


def summary(run: dict[str, Any]) -> str:
    """A few lines: right verdicts and agreement in % for each K and size."""
    head = f"seed {run['seed']}: epoch {run['best_epoch']} of {run['epochs']}, validation loss "
    lines = [f"{head}{run['validation_loss']:.3f}, {run['cpu_seconds']} CPU seconds"]
    for size, found in run["sizes"].items():
        right, agree = ("/".join(f"{100 * row[key]:.0f}" for row in found["keeps"]) for key in ("right", "agreement"))
        sure = "{sure_right} of {sure} sure verdicts right of {slides}".format(**found["certainty"])
        lines.append(
            f"  {size} px: right {right}, agreement {agree}, {sure}, {found['certainty']['patches_read']} read"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
