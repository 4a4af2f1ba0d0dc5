"""Verdicts of slides for growing numbers K of kept patches: figures that several benchmarks share.

1. Run the cascade on the features of a slide with each K, in growing order; the last K keeps everything. Read the bag
   of the last stage whole, and its rows with the highest attention as a bag of their own
   (:mod:`hagmil.bundle.adaptive`).
2. For each K: the share of right verdicts, the agreement with keeping everything, and the patches read.
3. The adaptive cascade: its threshold is a quantile of the margins of validation slides over all pairs of successive K,
   as in ``hagmil eval --calibrate``. A verdict is sure if a pair of successive K exceeds the threshold.
4. What others do with the same features: the mean of the finest patches under the coarse patches with the highest
   attention, as EAGLE does (arXiv 2502.13027), with logistic regression.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hagmil.bundle.adaptive import Reading, pair_margin, read_until_sure, top_rows
from hagmil.runtime.patches.quadtree import child_rows
from hagmil.spec import ATTENTION, LOGITS
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from hagmil.trainer.config.training import HagMilConfig
from hagmil.trainer.data.cohort import CohortSlide, read_bag
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluationPart, checkpoint_spec
from hagmil.trainer.evaluation.scoring import StageRunner, checkpoint_runner
from hagmil.trainer.training.loop import train

KEEPS = (4, 8, 16, 32, 64, 128)
EVERYTHING = 10**9
"""A number of kept patches above the size of any bag."""
LEVEL = 0.1
"""Quantile of the margins of validation slides."""
BEST = 25
"""Coarse patches of step 4."""

SIZES: dict[str, Any] = {
    "widths": [64],
    "hidden_width": 64,
    "gate_width": 32,
    "gate_dropout": 0.0,
    "attention_dropout": 0.0,
}
"""Sizes of all models: those of the demonstration."""
_VALIDATION: dict[str, Any] = {"keep_validation": 8, "validation_keeps": [4, 16, "all"]}
CASCADES: dict[str, dict[str, Any]] = {
    "keep8": {"keep_train": 8, "keep_validation": 8},
    "random": {"keep_random": True, **_VALIDATION},
    "teach": {"keep_random": True, "teach": 0.3, **_VALIDATION},
    "keep8-teach": {"keep_train": 8, "teach": 0.3, **_VALIDATION},
}
MODELS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "additive": {"readout": "additive", "rows": "independent"},
    "additive-transformer": {"readout": "additive", "rows": "transformer"},
}
TODAY = "pooled-keep8"
"""The recipe of earlier versions: read-out, selection and losses as published."""
RECIPES: dict[str, dict[str, Any]] = {
    f"{model}-{cascade}": {
        "model": {**MODELS[model], **SIZES},
        "cascade": CASCADES[cascade],
        "loss": {"k_sample": 4} if f"{model}-{cascade}" == TODAY else {"instance": "none"},
    }
    for model in MODELS
    for cascade in CASCADES
}
"""Sections of the configuration; ``teach`` is random K with teaching. Only the recipe of earlier versions has the
instance loss: with it, training on the digit pyramid starts later or not at all."""

Bags = Sequence[NDArray[np.float32]]
"""Features of all patches of a slide, for each stage."""


class SlideReadings(NamedTuple):
    """The readings of a slide, in the order of K, keeping everything last.

    Args:
        slide_id: name of the slide.
        label: index of its class.
        readings: ``patches_read`` counts the patches of this K and all smaller ones, each once.
        alone: patches read with each K alone.
    """

    slide_id: str
    label: int
    readings: tuple[Reading, ...]
    alone: tuple[int, ...]


def slide_bags(slide: CohortSlide) -> list[NDArray[np.float32]]:
    """Read the features of a slide as float32."""
    return [np.asarray(bag.float().numpy(), np.float32) for bag in read_bag(slide).features]


def read_slide(bags: Bags, factors: Sequence[int | None], run: StageRunner, keeps: Sequence[int]) -> Any:
    """Step 1 for one slide: the readings, and the patches read with each K alone."""
    seen = [np.zeros(len(bag), bool) for bag in bags]
    readings, alone = [], []
    for keep in keeps:
        rows, read = np.arange(len(bags[0])), 0
        for index, (bag, factor) in enumerate(zip(bags, factors, strict=True)):
            outputs = run(index, bag[rows])
            seen[index][rows] = True
            read += len(rows)
            if factor is not None:
                order = np.argsort(-outputs[ATTENTION.name], kind="stable")[:keep]
                rows = child_rows(rows[order], factor)
        top = top_rows(outputs[ATTENTION.name])
        logits = outputs[LOGITS.name]
        top_logits = logits if len(top) == len(rows) else run(len(bags) - 1, bags[-1][rows[top]])[LOGITS.name]
        readings.append(Reading(keep, sum(int(each.sum()) for each in seen), logits, top_logits))
        alone.append(read)
    return tuple(readings), tuple(alone)


def read_part(
    part: EvaluationPart, spec: EvaluatedModelSpec, run: StageRunner, keeps: Sequence[int]
) -> list[SlideReadings]:
    """Step 1 for the slides of a part; everything is kept last."""
    factors = [stage.factor for stage in part.stages]
    keeps = [*sorted(keeps), EVERYTHING] if len(spec.stages) > 1 else [EVERYTHING]
    return [
        SlideReadings(slide.slide_id, slide.label, *read_slide(slide_bags(slide), factors, run, keeps))
        for slide in part.slides
    ]


def verdict(logits: NDArray[np.floating]) -> int:
    """Return the class of the verdict."""
    return int(np.argmax(logits))


def rows_by_keep(slides: Sequence[SlideReadings]) -> list[dict[str, Any]]:
    """Step 2: a row for each K; ``keep`` is None where everything is kept."""
    verdicts = np.array([[verdict(reading.logits) for reading in slide.readings] for slide in slides])
    labels = np.array([slide.label for slide in slides])
    read = np.array([slide.alone for slide in slides]).mean(axis=0)
    return [
        {
            "keep": None if reading.keep == EVERYTHING else reading.keep,
            "right": round(float((verdicts[:, place] == labels).mean()), 4),
            "agreement": round(float((verdicts[:, place] == verdicts[:, -1]).mean()), 4),
            "patches_read": round(float(read[place]), 1),
        }
        for place, reading in enumerate(slides[0].readings)
    ]


def margin_threshold(validation: Sequence[SlideReadings], level: float = LEVEL) -> float:
    """Step 3: the threshold of the adaptive cascade, from validation slides."""
    margins = [
        pair_margin(before, after)
        for slide in validation
        for before, after in zip(slide.readings[:-2], slide.readings[1:-1], strict=True)
    ]
    return float(np.quantile(margins, level))


def certainty(validation: Sequence[SlideReadings], test: Sequence[SlideReadings]) -> dict[str, Any]:
    """Step 3: sure verdicts and patches read by the adaptive cascade, which never keeps everything."""
    threshold = margin_threshold(validation)
    runs = [read_until_sure(slide.readings[:-1], threshold) for slide in test]
    right = [verdict(run.readings[-1].logits) == slide.label for run, slide in zip(runs, test, strict=True) if run.sure]
    return {
        "threshold": round(threshold, 3),
        "slides": len(test),
        "sure": len(right),
        "sure_right": sum(right),
        "patches_read": round(float(np.mean([run.readings[-1].patches_read for run in runs])), 1),
    }


def stored_readings(path: Path, make: Callable[[], list[SlideReadings]]) -> list[SlideReadings]:
    """Return the readings in a file, made and written there if it does not exist."""
    if not path.exists():
        slides = [
            {
                "slide_id": slide.slide_id,
                "label": slide.label,
                "alone": slide.alone,
                "readings": [
                    (each.keep, each.patches_read, each.logits.tolist(), each.top_logits.tolist())
                    for each in slide.readings
                ],
            }
            for slide in make()
        ]
        path.write_text(json.dumps(slides))
    return [
        SlideReadings(
            slide["slide_id"],
            slide["label"],
            tuple(
                Reading(keep, read, np.array(logits), np.array(top)) for keep, read, logits, top in slide["readings"]
            ),
            tuple(slide["alone"]),
        )
        for slide in json.loads(path.read_text())
    ]


def best_patches_mean(bags: Bags, factors: Sequence[int | None], attention: NDArray[np.float32]) -> Any:
    """Step 4: the mean feature of the finest patches under the best coarse patches, and the patches read."""
    rows = np.argsort(-attention, kind="stable")[:BEST]
    for factor in factors:
        if factor is not None:
            rows = child_rows(rows, factor)
    return bags[-1][rows].mean(axis=0), len(attention) + len(rows)


def trained(config: HagMilConfig) -> dict[str, Any]:
    """Train, unless the run folder has a record of it; return the figures of the training."""
    record = config.out / "trained.json"
    if not record.exists():
        start = time.process_time()
        metrics = train(config)
        seconds = time.process_time() - start
        figures = {
            "epochs": metrics.epochs,
            "best_epoch": metrics.best_epoch,
            "validation_loss": round(metrics.validation.loss or 0.0, 4),
            "cpu_seconds": round(seconds, 1),
        }
        record.write_text(json.dumps(figures))
    found: dict[str, Any] = json.loads(record.read_text())
    return found


OpenPart = Callable[[HagMilConfig, EvaluatedModelSpec, str], EvaluationPart]
"""Opens the slides for training ("train") or of a test (its name) with the features of a configuration."""


def other_methods(config: HagMilConfig, open_slides: OpenPart, tests: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What others do with the same features: right verdicts and patches read, for each method and test.

    The models of one stage have the read-out, rows and training of ``config``, whose cascade is trained already.

    Args:
        config: the configuration of a cascade.
        open_slides: opens slides.
        tests: names of the tests.
    """
    cascade = checkpoint_spec(load_checkpoint(config.out))
    names = [stage.name for stage in cascade.stages]
    found: dict[str, dict[str, Any]] = {}
    runners = {}
    for method, name in (("coarse stage alone", names[0]), ("everything at the finest stage", names[-1])):
        out = config.out.with_name(f"run-{name}-alone")
        data = config.data.model_copy(update={"stages": (name,)})
        alone = config.model_copy(update={"out": out, "data": data})
        trained(alone)
        checkpoint = load_checkpoint(out)
        spec, runners[method] = checkpoint_spec(checkpoint), checkpoint_runner(checkpoint)
        found[method] = {
            test: rows_by_keep(read_part(open_slides(alone, spec, test), spec, runners[method], ()))[0]
            for test in tests
        }
    parts = {name: open_slides(config, cascade, name) for name in ("train", *tests)}
    found[f"coarse stage and {BEST} best"] = two_spacings(parts, tests, runners["coarse stage alone"])
    return found


def two_spacings(
    parts: dict[str, EvaluationPart], tests: Sequence[str], coarse: StageRunner
) -> dict[str, dict[str, float]]:
    """Step 4: the share of right verdicts and the patches read, for each test.

    Args:
        parts: the slides for training ("train") and of the tests.
        tests: names of the tests.
        coarse: a model of the coarsest stage.
    """

    def table(part: EvaluationPart) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
        factors = [stage.factor for stage in part.stages]
        found = []
        for slide in part.slides:
            bags = slide_bags(slide)
            found.append(best_patches_mean(bags, factors, coarse(0, bags[0])[ATTENTION.name]))
        labels = np.array([slide.label for slide in part.slides])
        return np.stack([mean for mean, _ in found]), labels, float(np.mean([read for _, read in found]))

    features, labels, _ = table(parts["train"])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, labels)
    rows = {}
    for test in tests:
        features, labels, read = table(parts[test])
        right = float((classifier.predict(features) == labels).mean())
        rows[test] = {"right": round(right, 4), "patches_read": round(read, 1)}
    return rows
