"""The slides of a training: feature files, labels and split put together, and checked before anything is
trained.

1. Every slide of the split has a label that is a class, and a feature file.
2. All feature files agree on stages, spacings, patch size, feature length, backbone and tissue parameters.
3. In each, a finer stage has f² times the rows of the coarser one.
4. Slides without tissue have empty bags: they are set aside, and counted.
5. Every class has a slide to train on, and there is one to validate on.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from hagmil._files import sha256_of
from hagmil.errors import DataError
from hagmil.features import read_features
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.data import PARTS, Part, SlideLabel, Split, read_labels, read_split, shared_cases
from hagmil.trainer.outline import Outline, StageOutline, read_outline

_log = logging.getLogger(__name__)

_NAMED_AT_MOST = 5
_SPACING_TOLERANCE = 0.02
"""By how much spacings may differ and still be the same, as everywhere in this package."""


@dataclass(frozen=True, slots=True)
class CohortStage:
    """One stage that all slides have.

    Args:
        name: the stage's name.
        spacing_um: micrometres per pixel.
        factor: f, this stage's spacing over the next finer one's; None on the finest.
    """

    name: str
    spacing_um: float
    factor: int | None


@dataclass(frozen=True, slots=True)
class CohortSlide:
    """One slide to train or evaluate on: its name, its feature file, its class."""

    slide_id: str
    path: Path
    label: int


@dataclass(frozen=True, slots=True)
class DataDigests:
    """SHA-256 of what a model was trained on; of feature files, their headers and sizes."""

    labels_sha256: str
    split_sha256: str
    features_sha256: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """All slides of a training.

    Args:
        classes: names, in the order of the logits.
        stages: coarse to fine.
        feature_dim: length of a feature vector.
        patch_px: side of a patch as the backbone saw it.
        backbone_name: name of the patch encoder.
        backbone_sha256: digest of its ONNX file.
        tissue: parameters of the tissue masks.
        train: slides with tissue.
        val: slides with tissue.
        test: slides with tissue; may be none.
        empty: names of the slides without tissue, for each part.
        digests: of the data.
    """

    classes: tuple[str, ...]
    stages: tuple[CohortStage, ...]
    feature_dim: int
    patch_px: int
    backbone_name: str
    backbone_sha256: str
    tissue: TissueParameters
    train: tuple[CohortSlide, ...]
    val: tuple[CohortSlide, ...]
    test: tuple[CohortSlide, ...]
    empty: Mapping[Part, tuple[str, ...]]
    digests: DataDigests


@dataclass(frozen=True, slots=True)
class Bag:
    """The features of one slide.

    Args:
        slide_id: the slide's name.
        label: its class.
        features: for each stage, coarse to fine, float16 or float32 (patches, feature_dim), rows in quadtree
            order.
    """

    slide_id: str
    label: int
    features: tuple[Tensor, ...]


def open_cohort(features: Path, labels_path: Path, split_path: Path, *, classes: Sequence[str] | None = None) -> Cohort:
    """Put a cohort together and check it; no feature is read yet.

    Args:
        features: folder of ``<slide_id>.h5`` files.
        labels_path: labels.csv.
        split_path: the split.
        classes: names in the order of the logits; the labels of the split's slides, sorted, where None.

    Returns:
        The cohort.

    Raises:
        DataError: anything that the steps at the top of this module find.
    """
    labels, split = read_labels(labels_path), read_split(split_path)
    class_names = _check_labels(labels, split, classes)  # step 1
    for case_id in shared_cases(split, labels):
        _log.warning('case "%s" has slides in more than one part of the split; its results are not unseen', case_id)
    wanted = [slide_id for part in PARTS for slide_id in split.part(part)]
    outlines = _read_outlines(features, wanted)
    reference = _check_agreement(outlines)  # step 2
    stages = _stages(reference)
    for slide_id, outline in outlines.items():
        _check_rows(slide_id, outline, stages)  # step 3

    slides, empty = _without_empty(features, labels, split, outlines, class_names)  # step 4
    _check_parts(slides, class_names)  # step 5
    return Cohort(
        classes=class_names,
        stages=stages,
        feature_dim=reference.stages[0].feature_dim,
        patch_px=reference.stages[0].patch_px,
        backbone_name=reference.header.backbone_name,
        backbone_sha256=reference.header.backbone_sha256,
        tissue=reference.header.tissue,
        train=slides["train"],
        val=slides["val"],
        test=slides["test"],
        empty=empty,
        digests=DataDigests(sha256_of(labels_path), sha256_of(split_path), _features_digest(outlines)),
    )


def read_bag(slide: CohortSlide) -> Bag:
    """Read the features of one slide, in the type that they are stored in.

    Raises:
        DataError: the file cannot be read.
    """
    stored = read_features(slide.path)
    return Bag(slide.slide_id, slide.label, tuple(torch.from_numpy(stage.features) for stage in stored.stages))


def _check_labels(labels: Mapping[str, SlideLabel], split: Split, classes: Sequence[str] | None) -> tuple[str, ...]:
    used = [slide_id for part in PARTS for slide_id in split.part(part)]
    unlabelled = [slide_id for slide_id in used if slide_id not in labels]
    if unlabelled:
        raise DataError(f"slides of the split that labels.csv does not have: {_listed(unlabelled)}")
    found = {labels[slide_id].label for slide_id in used}
    class_names = tuple(sorted(found) if classes is None else classes)
    unknown = sorted(found - set(class_names))
    if unknown:
        raise DataError(f"labels that are no class: {_listed(unknown)}; the classes are {', '.join(class_names)}")
    if len(class_names) < 2:
        raise DataError(f"all slides of the split are labelled {_listed(class_names)}: there is nothing to tell apart")
    return class_names


def _read_outlines(features: Path, slide_ids: Sequence[str]) -> dict[str, Outline]:
    missing = [slide_id for slide_id in slide_ids if not (features / f"{slide_id}.h5").is_file()]
    if missing:
        raise DataError(
            f'no features in "{features}" for {_listed(missing)}; run hagmil extract on them',
            code="features_missing",
        )
    return {slide_id: read_outline(features / f"{slide_id}.h5") for slide_id in slide_ids}


def _check_agreement(outlines: Mapping[str, Outline]) -> Outline:
    """All slides agree with the first; that one is returned."""
    if not outlines:
        raise DataError("the split names no slides")
    (first_id, first), *others = outlines.items()
    expected = _traits(first)
    for slide_id, outline in others:
        for what, found in _traits(outline).items():
            if not _agree(found, expected[what]):
                raise DataError(
                    f'slide "{slide_id}" and slide "{first_id}" have different {what}: {found} and '
                    f"{expected[what]}; extract all slides of a training alike"
                )
    return first


def _traits(outline: Outline) -> dict[str, tuple[object, ...]]:
    header, stages = outline.header, outline.stages
    return {
        "stages": header.stages,
        "spacings": tuple(stage.spacing_um for stage in stages),
        "patch sizes": tuple(stage.patch_px for stage in stages),
        "feature lengths": tuple(stage.feature_dim for stage in stages),
        "backbones": (header.backbone_name, header.backbone_sha256),
        "tissue parameters": (header.tissue,),
    }


def _agree(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=_SPACING_TOLERANCE) if isinstance(a, float) and isinstance(b, float) else a == b
        for a, b in zip(one, other, strict=True)
    )


def _stages(outline: Outline) -> tuple[CohortStage, ...]:
    stages = outline.stages
    if not stages:
        raise DataError(f'features of slide "{outline.header.slide_id}" hold no stage')
    if len({(stage.patch_px, stage.feature_dim) for stage in stages}) > 1:
        raise DataError("the stages' patch sizes or feature lengths differ; one backbone serves all stages")
    factors = [_factor(coarse, fine) for coarse, fine in pairwise(stages)]
    return tuple(
        CohortStage(stage.name, stage.spacing_um, factor)
        for stage, factor in zip(stages, (*factors, None), strict=True)
    )


def _factor(coarse: StageOutline, fine: StageOutline) -> int:
    ratio = coarse.spacing_um / fine.spacing_um
    factor = round(ratio)
    if factor < 2 or abs(ratio / factor - 1) > _SPACING_TOLERANCE:
        raise DataError(
            "stages must run from coarse to fine by whole factors; "
            f"{coarse.name} is {ratio:g} times as coarse as {fine.name}"
        )
    return factor


def _check_rows(slide_id: str, outline: Outline, stages: Sequence[CohortStage]) -> None:
    for stage, coarse, fine in zip(stages, outline.stages, outline.stages[1:], strict=False):
        if stage.factor is not None and fine.rows != coarse.rows * stage.factor**2:
            raise DataError(
                f'slide "{slide_id}": stage {fine.name} has {fine.rows} rows, but {stage.factor}² times the '
                f"{coarse.rows} rows of {coarse.name} are {coarse.rows * stage.factor**2}; extract it again"
            )


def _without_empty(
    features: Path,
    labels: Mapping[str, SlideLabel],
    split: Split,
    outlines: Mapping[str, Outline],
    classes: Sequence[str],
) -> tuple[dict[Part, tuple[CohortSlide, ...]], dict[Part, tuple[str, ...]]]:
    """For each part, the slides with tissue, and the names of those without."""
    slides: dict[Part, tuple[CohortSlide, ...]] = {}
    empty: dict[Part, tuple[str, ...]] = {}
    for part in PARTS:
        empty[part] = tuple(name for name in split.part(part) if outlines[name].stages[0].rows == 0)
        slides[part] = tuple(
            CohortSlide(name, features / f"{name}.h5", classes.index(labels[name].label))
            for name in split.part(part)
            if name not in empty[part]
        )
        for name in empty[part]:
            _log.warning('slide "%s" (%s) has no tissue: it is left out', name, part)
    return slides, empty


def _check_parts(slides: Mapping[Part, Sequence[CohortSlide]], classes: Sequence[str]) -> None:
    trained = {slide.label for slide in slides["train"]}
    untrained = [name for index, name in enumerate(classes) if index not in trained]
    if untrained:
        raise DataError(f"no slide with tissue to train on for class {_listed(untrained)}")
    if not slides["val"]:
        raise DataError("the split has no slide with tissue to validate on; training stops by validation loss")


def _features_digest(outlines: Mapping[str, Outline]) -> str:
    digest = hashlib.sha256()
    for _, outline in sorted(outlines.items()):
        digest.update(repr(outline).encode())
    return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(f'"{name}"' for name in names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
