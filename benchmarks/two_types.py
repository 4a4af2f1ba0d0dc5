"""Two types of patches that must occur together: rows that see one another, and independent rows.

    nice -n 10 python -m benchmarks.two_types --seeds 0 1 2 --out benchmarks/results/two_types.json

A slide has 32 to 96 patches in one stage, with features from a normal distribution in 16 dimensions. Patches of type A
and of type B have a mean of 4 in one of two dimensions. A positive slide has patches of both types. A negative slide
has patches of A only, of B only, or neither, a third of the slides each. Slides with types have 2 to 20 such patches in
all, so that their number says little. Models get the label of the slide only. Each model is trained with hagmil's own
training.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.stability import MODELS, SIZES
from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures, write_features
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.config.training import parse_config
from hagmil.trainer.training.loop import train

DIMENSIONS, SHIFT = 16, 4.0
PATCHES = (32, 96)
OF_TYPES = (2, 20)
SLIDES = {"train": 96, "val": 48, "test": 100}
EPOCHS = 20
_PX = 8


def make_bag(types: str, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw the features of a slide with patches of some types.

    Args:
        types: "", "A", "B" or "AB".
        generator: draws the sizes and features.

    Returns:
        float32 (patches, 16), in random order.
    """
    features = generator.standard_normal((int(generator.integers(PATCHES[0], PATCHES[1] + 1)), DIMENSIONS))
    first = 0
    for name in types:
        last = first + int(generator.integers(OF_TYPES[0], OF_TYPES[1] + 1)) // len(types)
        features[first : max(last, first + 1), "AB".index(name)] += SHIFT
        first = max(last, first + 1)
    return np.asarray(generator.permutation(features), np.float32)


def write_cohort(folder: Path, seed: int, slides: dict[str, int]) -> None:
    """Write features, labels.csv and split.csv; half of the slides of each part are positive."""
    generator = np.random.default_rng(seed)
    labels, columns = [("slide_id", "case_id", "label")], []
    for part, count in slides.items():
        names = [f"{part}-{place}" for place in range(count)]
        columns.append([part, *names])
        for place, name in enumerate(names):
            types = "AB" if place % 2 else ("A", "B", "")[place // 2 % 3]
            write_features(folder / "features" / f"{name}.h5", _slide(name, make_bag(types, generator)))
            labels.append((name, name, "positive" if types == "AB" else "negative"))
    length = max(map(len, columns))
    _write_csv(folder / "labels.csv", labels)
    _write_csv(folder / "split.csv", zip(*([*one, *[""] * (length - len(one))] for one in columns), strict=True))


def measure(model: str, seed: int, slides: dict[str, int], epochs: int) -> dict[str, Any]:
    """Train one model on the slides of a seed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_cohort(folder, seed, slides)
        tree = {
            "out": str(folder / "run"),
            "data": {name: str(folder / where) for name, where in _PATHS.items()},
            "classes": ["negative", "positive"],
            "model": {**MODELS[model], **SIZES},
            "loss": {"instance": "none"},
            "optimiser": {"learning_rate": 1e-3},
            "schedule": {"max_epochs": epochs, "patience": None},
            "seed": seed,
            "threads": 1,
        }
        start = time.process_time()
        metrics = train(parse_config(tree, source="benchmark"))
        seconds = time.process_time() - start
    return {
        "model": model,
        "seed": seed,
        "auc": metrics.test.auc,
        "right": metrics.test.accuracy,
        "cpu_seconds": round(seconds, 1),
    }


_PATHS = {"features": "features", "labels": "labels.csv", "split": "split.csv"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/two_types.json"))
    arguments = parser.parse_args()
    runs = []
    for model in arguments.models:
        for seed in arguments.seeds:
            runs.append(measure(model, seed, SLIDES, arguments.epochs))
            print(runs[-1], flush=True)
    report = {"machine": machine(), "epochs": arguments.epochs, "slides": SLIDES, "runs": runs}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def markdown(report: dict[str, Any]) -> str:
    """Return the AUC of each model as a table."""
    lines = [
        "| model | AUC, each seed | mean AUC | mean right | CPU seconds of a training |",
        "|---|---|---:|---:|---:|",
    ]
    for model in dict.fromkeys(run["model"] for run in report["runs"]):
        runs = [run for run in report["runs"] if run["model"] == model]
        areas = [run["auc"] for run in runs]
        lines.append(
            f"| {model} | {', '.join(f'{area:.3f}' for area in areas)} | {np.mean(areas):.3f} | "
            f"{np.mean([run['right'] for run in runs]):.1%} | {np.mean([run['cpu_seconds'] for run in runs]):.0f} |"
        )
    return "\n".join(lines)


def _slide(name: str, features: NDArray[np.float32]) -> SlideFeatures:
    coords = np.stack([np.arange(len(features)) * _PX, np.zeros(len(features))], axis=1).astype(np.int64)
    stage = StageFeatures("patches", coords, features, _PX, _PX, 0.5)
    header = FeatureHeader(name, name, "", 0.5, "metadata", "normal", "0" * 64, TissueParameters(), ("patches",))
    return SlideFeatures(header, (stage,))


def _write_csv(path: Path, rows: Sequence[Sequence[str]] | Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
