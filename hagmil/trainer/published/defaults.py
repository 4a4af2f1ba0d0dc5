"""Values that a published checkpoint does not contain: class names, hierarchy, spacings and patch size.

A model with the shape of a published one gets its values as defaults. The classes of any other model are numbered by
default, and its hierarchy must be given.

- HAG-MIL with three stages and two classes: Camelyon16, normal and tumor. Patches are 256 pixels wide at levels 2, 1
  and 0 of the slide files. Level 0 has 0.243 micrometres per pixel (0.226 in the slides of one of the two hospitals).
- HMIL with three coarse and seven fine classes: BRACS, with 0.25 micrometres per pixel at level 0. The publication
  gives neither spacing nor patch size; 256 pixels at level 0 is the default of its feature extraction.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import ValidationError

from hagmil._models import first_problem
from hagmil.bundle import Hierarchy
from hagmil.errors import UsageError
from hagmil.trainer.published.heads.found_head import FoundHead
from hagmil.trainer.published.weights import ImportedModel

_log = logging.getLogger(__name__)

CAMELYON16_CLASSES = ("normal", "tumor")
CAMELYON16_SPACING_UM = 0.243
BRACS_SPACING_UM = 0.25
BRACS_HIERARCHY = {
    "N": "benign",
    "PB": "benign",
    "UDH": "benign",
    "FEA": "atypical",
    "ADH": "atypical",
    "DCIS": "malignant",
    "IC": "malignant",
}
"""Fine class to coarse class, in the order of the published logits."""
PATCH_PX = 256
STAGE_FACTOR = 2


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Metadata of an imported model.

    Args:
        classes: names in the order of the logits; for HMIL, of the fine classes.
        hierarchy: coarse and fine classes of HMIL; None for HAG-MIL.
        spacing_um: micrometres per pixel of each stage, coarse to fine.
        patch_px: side of a patch at all stages.
    """

    classes: tuple[str, ...]
    hierarchy: Hierarchy | None
    spacing_um: tuple[float, ...]
    patch_px: int


def describe(
    model: ImportedModel,
    *,
    classes: Sequence[str] | None = None,
    fine_to_coarse: Mapping[str, str] | Sequence[int] | None = None,
    spacing_um: Sequence[float] | None = None,
    patch_px: int | None = None,
) -> ModelDescription:
    """Combine the given metadata of an imported model with the defaults.

    Args:
        model: the imported model.
        classes: names in the order of the logits; for HMIL, of the fine classes.
        fine_to_coarse: HMIL only: fine name to coarse name (the coarse classes are in the order of their first fine
            class), or the index of the coarse class for each fine class.
        spacing_um: one number for each stage, coarse to fine; or only that of the finest stage, which doubles from
            stage to stage.
        patch_px: side of a patch.

    Raises:
        UsageError: the number of names or spacings does not fit the model, or the hierarchy is missing or does not
            fit.
    """
    if model.kind == "hag-mil":
        if fine_to_coarse is not None:
            raise UsageError("a HAG-MIL model has no hierarchy of classes; remove --fine-to-coarse")
        default = CAMELYON16_CLASSES if (len(model.stages), model.classes) == (3, 2) else _numbers(model.classes)
        names, hierarchy = _names(classes, default, model.classes), None
    else:
        hierarchy = _hierarchy(model, classes, fine_to_coarse)
        names = hierarchy.fine
    size_px = _checked_patch_px(patch_px)
    return ModelDescription(names, hierarchy, _spacings(model, spacing_um), size_px)


def describe_head(
    head: FoundHead,
    *,
    classes: Sequence[str] | None,
    fine_to_coarse: Mapping[str, str] | Sequence[int] | None,
    spacing_um: Sequence[float] | None,
    patch_px: int | None,
) -> ModelDescription:
    """Combine the given metadata of an imported head with what its file contains.

    Args:
        head: the imported head.
        classes: names in the order of the logits; None: those of the file, else numbers.
        fine_to_coarse: must be None, since a head has no hierarchy.
        spacing_um: micrometres per pixel of its patches; no file contains it.
        patch_px: side of a patch.

    Raises:
        UsageError: the spacing is missing, or names or numbers do not fit the head.
    """
    if fine_to_coarse is not None:
        raise UsageError(f"a {head.kind} model has no hierarchy of classes; remove --fine-to-coarse")
    if spacing_um is None:
        raise UsageError("the file contains no spacing; pass --spacing-um with the spacing of its patches")
    if len(spacing_um) != 1:
        raise UsageError(f"{len(spacing_um)} spacings are given; a {head.kind} model has one stage")
    names = _names(classes, head.class_names or _numbers(head.classes), head.classes)
    return ModelDescription(names, None, _checked_spacings(spacing_um), _checked_patch_px(patch_px))


def parse_fine_to_coarse(text: str) -> dict[str, str] | tuple[int, ...]:
    """Parse a hierarchy.

    Args:
        text: ``N:benign,PB:benign,...``, or the index of the coarse class for each fine class, ``0,0,1``.

    Returns:
        Fine name to coarse name, in the given order; or the indices.

    Raises:
        UsageError: the text has neither form, or contains a fine class twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    pairs = [[side.strip() for side in part.split(":")] for part in parts]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UsageError(f'"{text}" is not a hierarchy; write fine:coarse,fine:coarse,... or 0,0,1,...')
    if len({fine for fine, _ in pairs}) < len(pairs):
        raise UsageError(f'"{text}" contains a fine class twice')
    return {pair[0]: pair[1] for pair in pairs}


def _hierarchy(
    model: ImportedModel,
    classes: Sequence[str] | None,
    fine_to_coarse: Mapping[str, str] | Sequence[int] | None,
) -> Hierarchy:
    if fine_to_coarse is None:
        bracs = tuple(BRACS_HIERARCHY)
        if (model.coarse_classes, model.classes) != (3, 7) or tuple(classes or bracs) != bracs:
            raise UsageError(
                f"this model has {model.coarse_classes} coarse and {model.classes} fine classes, but the file does not "
                "contain the map between them; pass --fine-to-coarse"
            )
        fine_to_coarse = BRACS_HIERARCHY
    if isinstance(fine_to_coarse, Mapping):
        fine = _names(classes, tuple(fine_to_coarse), model.classes)
        if set(fine) != set(fine_to_coarse):
            raise UsageError(f"--fine-to-coarse must contain exactly these classes: {', '.join(fine)}")
        coarse = tuple(dict.fromkeys(fine_to_coarse[name] for name in fine))
        return _checked(model, coarse, fine, _coarse_indices(fine_to_coarse, fine))
    coarse = _numbers(model.coarse_classes or 0)
    return _checked(model, coarse, _names(classes, _numbers(model.classes), model.classes), tuple(fine_to_coarse))


def _checked(
    model: ImportedModel, coarse: tuple[str, ...], fine: tuple[str, ...], indices: tuple[int, ...]
) -> Hierarchy:
    if len(coarse) != model.coarse_classes:
        raise UsageError(
            f"--fine-to-coarse contains {len(coarse)} coarse classes; the model has {model.coarse_classes}"
        )
    try:
        return Hierarchy(coarse=coarse, fine=fine, fine_to_coarse=indices)
    except ValidationError as error:
        raise UsageError(f"--fine-to-coarse: {first_problem(error)}") from error


def _coarse_indices(fine_to_coarse: Mapping[str, str], fine: tuple[str, ...]) -> tuple[int, ...]:
    coarse = list(dict.fromkeys(fine_to_coarse[name] for name in fine))
    return tuple(coarse.index(fine_to_coarse[name]) for name in fine)


def _names(given: Sequence[str] | None, default: tuple[str, ...], count: int) -> tuple[str, ...]:
    names = default if given is None else tuple(given)
    if len(names) != count:
        raise UsageError(f"{len(names)} classes are given ({', '.join(names)}); the model has {count}")
    if len(set(names)) < count:
        raise UsageError(f"a class is named twice: {', '.join(names)}")
    return names


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def _spacings(model: ImportedModel, given: Sequence[float] | None) -> tuple[float, ...]:
    stages = len(model.stages)
    if given is None:
        finest = CAMELYON16_SPACING_UM if model.kind == "hag-mil" else BRACS_SPACING_UM
        _log.warning("the file contains no spacing; assuming %g um/px at the finest stage", finest)
        given = (finest,)
    if len(given) == 1:
        given = tuple(given[0] * STAGE_FACTOR**step for step in reversed(range(stages)))
    if len(given) != stages:
        raise UsageError(f"{len(given)} spacings are given; the model has {stages} stages, coarse to fine")
    return _checked_spacings(given)


def _checked_patch_px(given: int | None) -> int:
    size_px = PATCH_PX if given is None else given
    if size_px < 8:
        raise UsageError(f"--patch-px is {size_px}; it must be at least 8")
    return size_px


def _checked_spacings(given: Sequence[float]) -> tuple[float, ...]:
    if not all(0 < value < math.inf for value in given) or any(a <= b for a, b in pairwise(given)):
        values = ", ".join(map(str, given))
        raise UsageError(f"spacings must be above 0 and in the order coarse to fine, not {values}")
    return tuple(given)
