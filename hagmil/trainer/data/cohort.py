"""The cohort of a training: feature files, labels and split, checked before training.

1. Each slide of the split must have a label and features. The label must be a class (with a hierarchy, a fine class).
2. All features must have the same stages, spacings, patch size, feature length, backbone and tissue parameters.
3. In each slide, each stage must have f² times the rows of the next coarser stage.
4. Slides without tissue have empty bags; they are excluded and counted.
5. Each class must have a slide for training, and there must be a slide for validation.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from hagmil.bundle import Hierarchy
from hagmil.errors import DataError
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.feature_sources import FeatureSource, quoted_list, source_of
from hagmil.trainer.data.feature_summary import FeatureSummary
from hagmil.trainer.data.labels import PARTS, Part, SlideLabel, Split, shared_cases
from hagmil.trainer.data.spacings import SPACING_TOLERANCE, stage_factor
from hagmil.trainer.data.tables import Tables, read_tables

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CohortStage:
    """A stage of all slides.

    Args:
        name: name of the stage.
        spacing_um: micrometres per pixel.
        factor: f, the ratio of this spacing to that of the next finer stage; None for the finest.
    """

    name: str
    spacing_um: float
    factor: int | None


@dataclass(frozen=True, slots=True)
class CohortSlide:
    """A slide of a cohort.

    Args:
        slide_id: name of the slide.
        label: index of its class; with a hierarchy, of its fine class.
        source: source of its features.
    """

    slide_id: str
    label: int
    source: FeatureSource


@dataclass(frozen=True, slots=True)
class DataDigests:
    """SHA-256 digests of labels, split and features; for features, of their headers and sizes."""

    labels_sha256: str
    split_sha256: str
    features_sha256: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """All slides of a training.

    Args:
        classes: names in the order of the logits; with a hierarchy, of the fine classes.
        hierarchy: coarse and fine classes; None if the labels have one layer.
        stages: coarse to fine.
        feature_dim: length of a feature vector.
        patch_px: side of a patch, as input to the backbone.
        backbone_name: name of the backbone; None if the features do not contain it.
        backbone_sha256: digest of its ONNX file; None if the features do not contain it.
        tissue: parameters of the tissue masks; the defaults if the features do not contain them.
        train: slides with tissue for training.
        val: slides with tissue for validation.
        test: slides with tissue for test; can be empty.
        empty: names of the slides without tissue in each part.
        digests: digests of the data.
    """

    classes: tuple[str, ...]
    hierarchy: Hierarchy | None
    stages: tuple[CohortStage, ...]
    feature_dim: int
    patch_px: int
    backbone_name: str | None
    backbone_sha256: str | None
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
        slide_id: name of the slide.
        label: index of its class; with a hierarchy, of its fine class.
        features: for each stage, coarse to fine, float16 or float32 (patches, feature_dim), rows in quadtree
            order.
    """

    slide_id: str
    label: int
    features: tuple[Tensor, ...]


def open_training_cohort(config: TrainingConfig) -> Cohort:
    """Assemble and check the cohort of a configuration, without reading features.

    Args:
        config: of either kind.

    Raises:
        DataError: a check at the top of this module fails.
    """
    data, classes = config.data, config.class_names()
    tables = read_tables(data.labels, data.split, fold=data.fold, classes=classes)
    return assemble(source_of(data), tables, classes=classes, hierarchy=config.label_hierarchy())


def assemble(
    source: FeatureSource,
    tables: Tables,
    *,
    classes: Sequence[str] | None = None,
    hierarchy: Hierarchy | None = None,
    for_training: bool = True,
) -> Cohort:
    """Assemble and check a cohort, without reading features.

    Args:
        source: source of the features.
        tables: labels and split.
        classes: names in the order of the logits; None: the labels of the slides in the split, sorted.
        hierarchy: coarse and fine classes; the fine classes are ``classes``.
        for_training: whether to check step 5.

    Raises:
        DataError: a check at the top of this module fails.
    """
    labels, split = tables.labels, tables.split
    class_names = _check_labels(labels, split, classes, hierarchy)  # step 1
    for case_id in shared_cases(split, labels):
        _log.warning('case "%s" has slides in several parts of the split; results on these slides are biased', case_id)
    summaries = source.summaries([slide_id for part in PARTS for slide_id in split.part(part)])
    reference = _check_agreement(summaries)  # step 2
    stages = _stages(reference)
    for slide_id, summary in summaries.items():
        _check_rows(slide_id, summary, stages)  # step 3

    slides, empty = _without_empty(source, labels, split, summaries, class_names)  # step 4
    if for_training:
        _check_parts(slides, class_names)  # step 5
    header = reference.header
    return Cohort(
        classes=class_names,
        hierarchy=hierarchy,
        stages=stages,
        feature_dim=reference.stages[0].feature_dim,
        patch_px=reference.stages[0].patch_px,
        backbone_name=header.backbone_name if header else None,
        backbone_sha256=header.backbone_sha256 if header else None,
        tissue=header.tissue if header else TissueParameters(),
        train=slides["train"],
        val=slides["val"],
        test=slides["test"],
        empty=empty,
        digests=DataDigests(tables.labels_sha256, tables.split_sha256, _features_digest(summaries)),
    )


def read_bag(slide: CohortSlide) -> Bag:
    """Read the features of one slide, in their stored type.

    Raises:
        DataError: they cannot be read.
    """
    return Bag(slide.slide_id, slide.label, slide.source.read(slide.slide_id))


def _check_labels(
    labels: Mapping[str, SlideLabel], split: Split, classes: Sequence[str] | None, hierarchy: Hierarchy | None
) -> tuple[str, ...]:
    used = [slide_id for part in PARTS for slide_id in split.part(part)]
    unlabelled = [slide_id for slide_id in used if slide_id not in labels]
    if unlabelled:
        raise DataError(f"slides of the split without a label: {quoted_list(unlabelled)}")
    found = {labels[slide_id].label for slide_id in used}
    class_names = tuple(sorted(found) if classes is None else classes)
    unknown = sorted(found - set(class_names))
    if unknown:
        is_coarse = hierarchy is not None and set(unknown) & set(hierarchy.coarse)
        hint = "; with a hierarchy, labels.csv must contain the fine class" if is_coarse else ""
        raise DataError(
            f"labels that are not a class: {quoted_list(unknown)}; the classes are {', '.join(class_names)}{hint}"
        )
    if len(class_names) < 2:
        raise DataError(
            f"all slides of the split are labelled {quoted_list(class_names)}; a model needs at least two classes"
        )
    return class_names


def _check_agreement(summaries: Mapping[str, FeatureSummary]) -> FeatureSummary:
    """Step 2: compare all slides with the first, and return it."""
    if not summaries:
        raise DataError("the split contains no slides")
    (first_id, first), *others = summaries.items()
    expected = _traits(first)
    for slide_id, summary in others:
        for what, found in _traits(summary).items():
            if not _agree(found, expected[what]):
                raise DataError(
                    f'slide "{slide_id}" and slide "{first_id}" have different {what}: {found} and '
                    f"{expected[what]}; extract all slides of a cohort with the same options"
                )
    return first


def _traits(summary: FeatureSummary) -> dict[str, tuple[object, ...]]:
    header, stages = summary.header, summary.stages
    return {
        "stages": tuple(stage.name for stage in stages),
        "spacings": tuple(stage.spacing_um for stage in stages),
        "patch sizes": tuple(stage.patch_px for stage in stages),
        "feature lengths": tuple(stage.feature_dim for stage in stages),
        "backbones": (header and header.backbone_name, header and header.backbone_sha256),
        "tissue parameters": (header and header.tissue,),
    }


def _agree(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=SPACING_TOLERANCE) if isinstance(a, float) and isinstance(b, float) else a == b
        for a, b in zip(one, other, strict=True)
    )


def _stages(summary: FeatureSummary) -> tuple[CohortStage, ...]:
    stages = summary.stages
    if not stages:
        raise DataError(f'features of slide "{summary.slide_id}" contain no stage')
    if len({(stage.patch_px, stage.feature_dim) for stage in stages}) > 1:
        raise DataError("patch sizes or feature lengths differ between stages; extract all stages with one backbone")
    factors = [stage_factor(coarse.spacing_um, fine.spacing_um) for coarse, fine in pairwise(stages)]
    return tuple(
        CohortStage(stage.name, stage.spacing_um, factor)
        for stage, factor in zip(stages, (*factors, None), strict=True)
    )


def _check_rows(slide_id: str, summary: FeatureSummary, stages: Sequence[CohortStage]) -> None:
    for stage, coarse, fine in zip(stages, summary.stages, summary.stages[1:], strict=False):
        if stage.factor is not None and fine.rows != coarse.rows * stage.factor**2:
            raise DataError(
                f'slide "{slide_id}": stage {fine.name} has {fine.rows} rows, but {stage.factor}² times the '
                f"{coarse.rows} rows of {coarse.name} are {coarse.rows * stage.factor**2}; extract it again"
            )


def _without_empty(
    source: FeatureSource,
    labels: Mapping[str, SlideLabel],
    split: Split,
    summaries: Mapping[str, FeatureSummary],
    classes: Sequence[str],
) -> tuple[dict[Part, tuple[CohortSlide, ...]], dict[Part, tuple[str, ...]]]:
    """Step 4: for each part, the slides with tissue, and the names of those without."""
    slides: dict[Part, tuple[CohortSlide, ...]] = {}
    empty: dict[Part, tuple[str, ...]] = {}
    for part in PARTS:
        empty[part] = tuple(name for name in split.part(part) if summaries[name].stages[0].rows == 0)
        slides[part] = tuple(
            CohortSlide(name, classes.index(labels[name].label), source)
            for name in split.part(part)
            if name not in empty[part]
        )
        for name in empty[part]:
            _log.warning('slide "%s" (%s) has no tissue and is excluded', name, part)
    return slides, empty


def _check_parts(slides: Mapping[Part, Sequence[CohortSlide]], classes: Sequence[str]) -> None:
    trained = {slide.label for slide in slides["train"]}
    untrained = [name for index, name in enumerate(classes) if index not in trained]
    if untrained:
        raise DataError(f"no slide with tissue for training of class {quoted_list(untrained)}")
    if not slides["val"]:
        raise DataError("the split has no slide with tissue for validation, which training needs")


def _features_digest(summaries: Mapping[str, FeatureSummary]) -> str:
    digest = hashlib.sha256()
    for _, summary in sorted(summaries.items()):
        digest.update(repr(summary).encode())
    return digest.hexdigest()
