"""The cascade over extracted features: what a bundle would say with any ``--keep``, with no patch encoded again.

Features of the whole quadtree are there (``hagmil extract``), so a stage's bag is a choice of rows: the steps are
those of ``hagmil.runtime.inference.cascade``, with the same sessions, and only reading and encoding are left out.
Keeping
everything is the limit that a number of kept patches is judged by: how many slides get the same verdict.
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
"""A number of kept patches that no bag reaches."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was said of a cohort with one number of kept patches.

    Args:
        keep: patches kept at every stage but the last.
        probabilities: float64 (slides, classes).
        read: int64 (slides, stages), patches that each stage read.
    """

    keep: int
    probabilities: NDArray[np.float64]
    read: NDArray[np.int64]

    @property
    def predictions(self) -> NDArray[np.int64]:
        """The class of highest probability of each slide, int64 (slides,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


@dataclass(frozen=True, slots=True)
class LabelledSlide:
    """A slide of a cohort, its patient, its label and its file."""

    slide_id: str
    case_id: str
    label: str
    path: Path


def phantom_cohort(folder: Path, slides: int, size_px: int, seed: int) -> list[LabelledSlide]:
    """A cohort of phantoms, made unless it is there."""
    if not (folder / "labels.csv").is_file():
        write_cohort(folder, slides=slides, size_px=size_px, seed=seed)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != slides:
        raise SystemExit(f"{folder} holds {len(rows)} slides, not {slides}; choose another --folder")
    return [
        LabelledSlide(row["slide_id"], row["case_id"], row["label"], folder / "slides" / f"{row['slide_id']}.tif")
        for row in rows
    ]


def extract_cohort(slides: Sequence[LabelledSlide], extractor: Extractor, folder: Path) -> list[SlideFeatures]:
    """Features of a cohort, read from the folder where they are there already."""
    requests = slide_requests([str(slide.path) for slide in slides])
    for outcome in extract_many(requests, extractor, folder):
        if outcome.status != "ok":
            raise SystemExit(f"{outcome.slide_id}: {outcome.message}")
    return [read_features(folder / f"{request.slide_id}.h5") for request in requests]


def cascade_verdicts(model: LoadedModel, cohort: Sequence[SlideFeatures], keep: int) -> Verdicts:
    """Take every slide's features through the cascade."""
    found = [_one_slide(model, slide, keep) for slide in cohort]
    return Verdicts(keep, np.stack([values for values, _ in found]), np.array([read for _, read in found], np.int64))


def flat_verdicts(model: LoadedModel, cohort: Sequence[SlideFeatures]) -> Verdicts:
    """The finest stage's model on all of its patches, in the quadtree's order, with no coarser stage asked."""
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
    """Share of slides on which two ways give the same verdict."""
    return float((some.predictions == all_kept.predictions).mean())


def smallest_agreeing(tried: Sequence[Verdicts], all_kept: Verdicts, least: float = 1.0) -> int | None:
    """The smallest number of kept patches from which on all larger ones that were tried agree, too.

    Args:
        tried: in any order.
        all_kept: verdicts with everything kept.
        least: the share of slides that counts as agreement.

    Returns:
        None where not even the largest agrees.
    """
    smallest = None
    for verdicts in sorted(tried, key=lambda each: -each.keep):
        if agreement(verdicts, all_kept) < least:
            break
        smallest = verdicts.keep
    return smallest


def share_read(some: Verdicts, all_kept: Verdicts) -> tuple[float, float]:
    """Patches read over patches read with everything kept: of the finest stage, and of all stages together."""
    finest = some.read[:, -1].sum() / all_kept.read[:, -1].sum()
    return float(finest), float(some.read.sum() / all_kept.read.sum())


def auc(verdicts: Verdicts, labels: NDArray[np.int64]) -> float | None:
    """Area under the ROC curve; None where a class is missing."""
    return classification_metrics(verdicts.probabilities, labels, loss=None, empty_slides=0).auc


def accuracy(verdicts: Verdicts, labels: NDArray[np.int64]) -> float:
    """Share of slides whose verdict is their label."""
    return float((verdicts.predictions == labels).mean())
