"""The cascade on extracted features, for any number of kept patches without encoding patches again.

The features of the full quadtree exist (``hagmil extract``), so the bag of a stage is a selection of rows. The steps
and sessions are those of ``hagmil.runtime.inference.cascade``, without reading and encoding. A number of kept patches
is compared with keeping everything: the share of slides with the same prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Manifest
from hagmil.features import SlideFeatures, read_features
from hagmil.phantom import write_cohort
from hagmil.runtime.extract import Extractor, extract_many
from hagmil.runtime.inference.cascade import highest_rows, run_stage
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.verdict import patch_attention, verdict_of
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.patches.quadtree import child_rows
from hagmil.trainer.metrics.classification import classification_metrics

EVERYTHING = 1 << 40
"""A number of kept patches above the size of any bag."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Predictions for a cohort with one number of kept patches.

    Args:
        keep: patches kept at every stage but the last.
        probabilities: float64 (slides, classes).
        read: int64 (slides, stages), patches read at each stage.
    """

    keep: int
    probabilities: NDArray[np.float64]
    read: NDArray[np.int64]

    @property
    def predictions(self) -> NDArray[np.int64]:
        """The class with the highest probability for each slide, int64 (slides,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


@dataclass(frozen=True, slots=True)
class LabelledPhantom:
    """A phantom of a cohort: slide, patient, label and file."""

    slide_id: str
    case_id: str
    label: str
    path: Path


def phantom_cohort(folder: Path, slides: int, size_px: int, seed: int) -> list[LabelledPhantom]:
    """Return a cohort of phantoms, made if it does not exist."""
    if not (folder / "labels.csv").is_file():
        write_cohort(folder, slides=slides, size_px=size_px, seed=seed)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != slides:
        raise SystemExit(f"{folder} contains {len(rows)} slides, not {slides}; choose another --folder")
    return [
        LabelledPhantom(row["slide_id"], row["case_id"], row["label"], folder / "slides" / f"{row['slide_id']}.tif")
        for row in rows
    ]


def extract_cohort(slides: Sequence[LabelledPhantom], extractor: Extractor, folder: Path) -> list[SlideFeatures]:
    """Return the features of a cohort, extracted into the folder unless they exist."""
    requests = slide_requests([str(slide.path) for slide in slides])
    for outcome in extract_many(requests, extractor, folder):
        if outcome.status != "ok":
            raise SystemExit(f"{outcome.slide_id}: {outcome.message}")
    return [read_features(folder / f"{request.slide_id}.h5") for request in requests]


def cascade_verdicts(model: LoadedModel, cohort: Sequence[SlideFeatures], keep: int) -> Verdicts:
    """Run the cascade on the features of every slide."""
    found = [_one_slide(model, slide, keep) for slide in cohort]
    return Verdicts(keep, np.stack([values for values, _ in found]), np.array([read for _, read in found], np.int64))


def flat_verdicts(model: LoadedModel, cohort: Sequence[SlideFeatures]) -> Verdicts:
    """Run the finest stage model alone on all of its patches, in quadtree order."""
    manifest, stage = model.bundle.manifest, model.bundle.manifest.stages[-1]
    values, read = [], []
    for slide in cohort:
        features = np.asarray(slide.stages[-1].features, np.float32)
        values.append(_probabilities(manifest, run_stage(model.stages[-1], features, stage.name)))
        read.append([0] * (len(manifest.stages) - 1) + [len(features)])
    return Verdicts(EVERYTHING, np.stack(values), np.array(read, np.int64))


def _one_slide(model: LoadedModel, slide: SlideFeatures, keep: int) -> tuple[NDArray[np.float64], list[int]]:
    rows = np.arange(len(slide.stages[0].coords))
    read: list[int] = []
    outputs: dict[str, NDArray[np.float32]] = {}
    for index, (bag, session) in enumerate(zip(slide.stages, model.stages, strict=True)):
        outputs = run_stage(session, np.asarray(bag.features, np.float32)[rows], bag.name)
        read.append(len(rows))
        if index < len(slide.stages) - 1:
            kept = rows[highest_rows(patch_attention(outputs), keep)]
            rows = child_rows(kept, bag.patch_level0 // slide.stages[index + 1].patch_level0)
    return _probabilities(model.bundle.manifest, outputs), read


def _probabilities(manifest: Manifest, outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.array(list(verdict_of(manifest, outputs).probabilities.values()))


def agreement(some: Verdicts, all_kept: Verdicts) -> float:
    """Return the share of slides with the same prediction."""
    return float((some.predictions == all_kept.predictions).mean())


def smallest_agreeing(tried: Sequence[Verdicts], all_kept: Verdicts, least: float = 1.0) -> int | None:
    """Return the smallest tried number of kept patches that agrees, as all larger ones do.

    Args:
        tried: predictions with several numbers of kept patches, in any order.
        all_kept: predictions with everything kept.
        least: the share of slides that counts as agreement.

    Returns:
        The number; None if the largest one does not agree.
    """
    smallest = None
    for verdicts in sorted(tried, key=lambda each: -each.keep):
        if agreement(verdicts, all_kept) < least:
            break
        smallest = verdicts.keep
    return smallest


def share_read(some: Verdicts, all_kept: Verdicts) -> tuple[float, float]:
    """Return the share of patches read, for the finest stage and for all stages together."""
    finest = some.read[:, -1].sum() / all_kept.read[:, -1].sum()
    return float(finest), float(some.read.sum() / all_kept.read.sum())


def auc(verdicts: Verdicts, labels: NDArray[np.int64]) -> float | None:
    """Return the area under the ROC curve; None if a class is missing."""
    return classification_metrics(verdicts.probabilities, labels, loss=None, empty_slides=0).auc


def accuracy(verdicts: Verdicts, labels: NDArray[np.int64]) -> float:
    """Return the share of slides whose prediction is their label."""
    return float((verdicts.predictions == labels).mean())
