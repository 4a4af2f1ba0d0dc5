"""Accuracy over the number of kept patches, on pyramids of handwritten digits: real images, without a backbone.

    nice -n 10 python -m benchmarks.digit_pyramid --recipe additive-teach --seeds 0 1 2 --out pyramid.json

The images are part of scikit-learn: 1797 real digits of 8 x 8 pixels (Alpaydin and Kaynak 1998).

1. Split the images of each digit into training (60 %), validation (20 %) and test (20 %), without overlap.
2. A slide has 40 to 80 coarse patches, each a field of 4 x 4 digits. The fine stage sees one digit per patch, the
   middle stage 2 x 2 digits and the coarse stage 4 x 4 digits, shrunken to 8 x 8 pixels by averaging. The features of
   a patch are its 64 grey values from 0 to 1.
3. In a field that is rich in a digit, each image is that digit with probability 0.5; all others are of the eight
   digits other than 1 and 7. Every slide has up to 15 % of fields rich in 7. A positive slide also has 3 to 40 % of
   fields rich in 1. A model gets the label of the slide only.
4. For each seed, train with hagmil's own training on 64 slides, and classify test slides of the same size and of 16
   times the size with each number of kept patches.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.machine import machine
from benchmarks.stability import (
    KEEPS,
    RECIPES,
    OpenPart,
    SlideReadings,
    certainty,
    other_methods,
    read_part,
    rows_by_keep,
    stored_readings,
    trained,
)
from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures, write_features
from hagmil.runtime.patches.quadtree import children
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from hagmil.trainer.config.training import HagMilConfig, parse_config
from hagmil.trainer.data.labels import Part
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluationPart, checkpoint_spec, open_part
from hagmil.trainer.evaluation.scoring import checkpoint_runner

TESTS = ("same", "large")
"""Test slides of the training size, and of 16 times the area."""
CLASSES = ("negative", "positive")
KEY, DISTRACTOR = 1, 7
RICH = 0.5
"""Probability of the digit in a field that is rich in it."""
KEY_FIELDS, DISTRACTOR_FIELDS = (0.03, 0.40), (0.0, 0.15)
FIELDS = (40, 80)
"""Smallest and largest number of coarse patches of a slide of the training size."""
LARGE = 16
"""Area of a large test slide, in multiples of the training size."""
STAGES = (("coarse", 2.0), ("middle", 1.0), ("fine", 0.5))
SLIDES = {"train": 64, "val": 32, "test": 40, "large": 20}
_SHARES = (0.6, 0.2, 0.2)
_PX = 8

Pool = dict[int, NDArray[np.float32]]
"""Images (n, 8, 8) of each digit."""


def image_pools(generator: np.random.Generator) -> tuple[Pool, Pool, Pool]:
    """Step 1: disjoint images for training, validation and test."""
    digits = load_digits()
    pixels = (digits.images / 16).astype(np.float32)
    pools: tuple[Pool, Pool, Pool] = ({}, {}, {})
    for digit in range(10):
        places = generator.permutation(np.flatnonzero(digits.target == digit))
        cuts = np.round(np.cumsum(_SHARES)[:-1] * len(places)).astype(int)
        for pool, share in zip(pools, np.split(places, cuts), strict=True):
            pool[digit] = pixels[share]
    return pools


def make_fields(
    pool: Pool,
    fields: int,
    positive: bool,
    generator: np.random.Generator,
    key_share: tuple[float, float] = KEY_FIELDS,
) -> NDArray[np.float32]:
    """Steps 2 and 3: the fields of one slide in random order.

    Args:
        pool: the images.
        fields: number of fields.
        positive: whether there are fields rich in the key digit.
        generator: draws digits and images.
        key_share: smallest and largest share of fields rich in the key digit; a positive slide has at least one.

    Returns:
        float32 (fields, 32, 32), grey values from 0 to 1.
    """
    keys = max(1, round(fields * generator.uniform(*key_share))) if positive else 0
    distractors = round(fields * generator.uniform(*DISTRACTOR_FIELDS))
    background = [digit for digit in pool if digit not in (KEY, DISTRACTOR)]
    digits = generator.choice(background, size=(fields, 16))
    rich = generator.random((fields, 16)) < RICH
    digits[:keys][rich[:keys]] = KEY
    digits[keys : keys + distractors][rich[keys : keys + distractors]] = DISTRACTOR
    images = np.stack([pool[digit][generator.integers(len(pool[digit]))] for digit in digits.ravel().tolist()])
    grid = images.reshape(fields, 4, 4, _PX, _PX).swapaxes(2, 3)  # (fields·16, 8, 8) -> (fields, row, 8, column, 8)
    return generator.permutation(grid.reshape(fields, 4 * _PX, 4 * _PX))


def slide_features(slide_id: str, fields: NDArray[np.float32]) -> SlideFeatures:
    """Cut the fields of a slide into the patches of all stages, with siblings in the order of the quadtree."""
    side = 4 * _PX
    coords = np.stack([np.arange(len(fields)) * side, np.zeros(len(fields))], axis=1).astype(np.int64)
    image = np.concatenate(list(fields), axis=1)  # (32, fields·32)
    stages = []
    for index, (name, spacing_um) in enumerate(STAGES):
        if index:
            coords, side = children(coords, side, 2), side // 2
        x, y = coords[:, 0], coords[:, 1]
        offsets = np.arange(side)
        patches = image[(y[:, None] + offsets)[:, :, None], (x[:, None] + offsets)[:, None, :]]  # (n, side, side)
        shrink = side // _PX
        small = patches.reshape(-1, _PX, shrink, _PX, shrink).mean(axis=(2, 4))
        stages.append(StageFeatures(name, coords, small.reshape(len(coords), -1), _PX, side, spacing_um))
    names = tuple(name for name, _ in STAGES)
    header = FeatureHeader(slide_id, slide_id, "", 0.5, "metadata", "pixels", "0" * 64, TissueParameters(), names)
    return SlideFeatures(header, tuple(stages))


def write_cohort(folder: Path, seed: int, slides: dict[str, int], key_share: tuple[float, float] = KEY_FIELDS) -> None:
    """Write features, labels.csv, and two splits: ``same.csv`` and ``large.csv`` differ in their test slides."""
    generator = np.random.default_rng(seed)
    train_pool, val_pool, test_pool = image_pools(generator)
    pools = {"train": train_pool, "val": val_pool, "test": test_pool, "large": test_pool}
    names: dict[str, list[str]] = {part: [f"{part}-{place}" for place in range(slides[part])] for part in pools}
    rows = [("slide_id", "case_id", "label")]
    for part, slide_ids in names.items():
        for place, slide_id in enumerate(slide_ids):
            size = int(generator.integers(FIELDS[0], FIELDS[1] + 1)) * (LARGE if part == "large" else 1)
            fields = make_fields(pools[part], size, bool(place % 2), generator, key_share)
            write_features(folder / "features" / f"{slide_id}.h5", slide_features(slide_id, fields))
            rows.append((slide_id, slide_id, CLASSES[place % 2]))
    _write_csv(folder / "labels.csv", rows)
    for split, test in zip(TESTS, ("test", "large"), strict=True):
        columns = [["train", *names["train"]], ["val", *names["val"]], ["test", *names[test]]]
        length = max(map(len, columns))
        _write_csv(folder / f"{split}.csv", zip(*([*one, *[""] * (length - len(one))] for one in columns), strict=True))


def configuration(folder: Path, recipe: str, seed: int, epochs: int) -> HagMilConfig:
    """The configuration of one training: the sizes of the demonstration's model, with the settings of a recipe."""
    tree = {
        "out": str(folder / f"run-{recipe}"),
        "data": {
            "features": str(folder / "features"),
            "labels": str(folder / "labels.csv"),
            "split": str(folder / "same.csv"),
        },
        "classes": list(CLASSES),
        **RECIPES[recipe],
        "optimiser": {"learning_rate": 1e-3},
        "schedule": {"max_epochs": epochs, "patience": None},
        "seed": seed,
        "threads": 1,
    }
    config = parse_config(tree, source="benchmark")
    assert isinstance(config, HagMilConfig)
    return config


def classify(config: HagMilConfig, folder: Path, keeps: Sequence[int]) -> dict[str, Any]:
    """Step 4: right verdicts and patches read for each K and size, and the sure verdicts of the adaptive cascade."""
    checkpoint = load_checkpoint(config.out)
    run, spec = checkpoint_runner(checkpoint), checkpoint_spec(checkpoint)

    def readings(name: str) -> list[SlideReadings]:
        path = config.out / f"readings-{name}.json"
        return stored_readings(path, lambda: read_part(open_slides(folder)(config, spec, name), spec, run, keeps))

    validation = readings("val")
    return {
        test: {"keeps": rows_by_keep(readings(test)), "certainty": certainty(validation, readings(test))}
        for test in TESTS
    }


def open_slides(folder: Path) -> OpenPart:
    """Return a function that opens the slides for training or validation, or of one of the two tests."""

    def opened(config: HagMilConfig, spec: EvaluatedModelSpec, name: str) -> EvaluationPart:
        data = config.data.model_copy(update={"split": folder / f"{name if name in TESTS else TESTS[0]}.csv"})
        part: Part = "train" if name == "train" else "val" if name == "val" else "test"
        return open_part(config.model_copy(update={"data": data}), spec, part)

    return opened


def measure(
    recipe: str,
    seeds: Sequence[int],
    keeps: Sequence[int],
    epochs: int,
    folder: Path,
    key_share: tuple[float, float] = KEY_FIELDS,
    others: bool = False,
) -> dict[str, Any]:
    """Train and classify for each seed; features and runs stay in the folder, and later calls read them again.

    Args:
        recipe: name of the recipe.
        seeds: seeds of slides and training.
        keeps: numbers of kept patches.
        epochs: number of epochs.
        folder: keeps features and runs.
        key_share: see :func:`make_fields`.
        others: whether to measure what others do with the same features, too.
    """
    runs = []
    for seed in seeds:
        cohort = folder / f"keys-{key_share[0]:g}-{key_share[1]:g}" / f"seed-{seed}"
        if not (cohort / "large.csv").exists():  # written last
            write_cohort(cohort, seed, SLIDES, key_share)
        config = configuration(cohort, recipe, seed, epochs)
        runs.append({"seed": seed, **trained(config), **classify(config, cohort, keeps)})
        if others:
            runs[-1]["others"] = other_methods(config, open_slides(cohort), TESTS)
        print(f"seed {seed}: {summary(runs[-1])}", flush=True)
    return {
        "machine": machine(),
        "recipe": recipe,
        "sections": RECIPES[recipe],
        "epochs": epochs,
        "key_share": key_share,
        "runs": runs,
    }


def summary(run: dict[str, Any]) -> str:
    """One line: validation loss, and the share of correct predictions in % for each K at both sizes."""
    shares = ("/".join(f"{100 * row['right']:.0f}" for row in run[split]["keeps"]) for split in TESTS)
    sure = (
        "{sure_right} of {sure} sure verdicts right of {slides}".format(**run[split]["certainty"]) for split in TESTS
    )
    return (
        f"validation loss {run['validation_loss']:.3f}; right {', '.join(shares)}; {', '.join(sure)}; "
        f"{run['cpu_seconds']} CPU seconds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, default="additive-teach")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--keeps", type=int, nargs="+", default=list(KEEPS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--share", type=float, help="share of fields rich in the key digit, in place of 0.03 to 0.40")
    parser.add_argument("--others", action="store_true", help="also measure what others do with the same features")
    parser.add_argument("--folder", type=Path, help="keeps features and runs, so that a later call need not train")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    key_share = KEY_FIELDS if arguments.share is None else (arguments.share, arguments.share)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        report = measure(
            arguments.recipe, arguments.seeds, arguments.keeps, arguments.epochs, folder, key_share, arguments.others
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def _write_csv(path: Path, rows: Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
