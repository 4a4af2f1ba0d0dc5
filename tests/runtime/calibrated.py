"""A loaded bundle whose manifest says where it was tested and when a verdict is sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hagmil.bundle import Certainty, Tested, TestedKeep
from hagmil.runtime.inference.loaded_bundle import LoadedModel


def calibrated(
    model: LoadedModel, *, threshold: float = 0.5, keeps: Sequence[int] = (4, 8, 16, 32), largest_bag: int = 1000
) -> LoadedModel:
    """The model with a section ``certainty``."""
    certainty = Certainty(
        threshold=threshold,
        method="quantile",
        level=0.1,
        keeps=tuple(keeps),
        top_rows=4,
        slides=20,
        smallest_bag=1,
        largest_bag=largest_bag,
        unsure=0.1,
        sure_right=1.0,
    )
    return _with(model, certainty=certainty)


def with_tested(
    model: LoadedModel,
    *,
    keeps: Sequence[int | None] = (4, 8, None),
    held_from: int | None = 8,
    largest_bag: int = 1000,
) -> LoadedModel:
    """The model with a section ``tested``."""
    numbers = tuple(
        TestedKeep(keep=keep, slides=20, right=1.0, auc=1.0, agreement=1.0, patches_read=9.0, margins={})
        for keep in keeps
    )
    section = Tested(part="val", slides=20, smallest_bag=1, largest_bag=largest_bag, keeps=numbers, held_from=held_from)
    return _with(model, tested=section)


def _with(model: LoadedModel, **sections: object) -> LoadedModel:
    manifest = model.bundle.manifest.model_copy(update=sections)
    return replace(model, bundle=replace(model.bundle, manifest=manifest))
