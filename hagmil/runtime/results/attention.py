"""``attention.h5``: coordinates and attention of every patch of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py

from hagmil._files import atomic_path
from hagmil.bundle import Hierarchy
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.results.result import ATTENTION_NAME
from hagmil.spec import COARSE_ATTENTION, FINE_ATTENTION, TensorSpec


def write_attention(folder: Path, outcomes: Sequence[StageOutcome], hierarchy: Hierarchy | None = None) -> None:
    """Write ``attention.h5``: coordinates, attention and kept rows of every stage.

    One group a stage with ``coords`` int64 (patches, 2), level-0 top-left (x, y); ``attention`` float32 (patches,);
    ``kept`` int64 (kept,), rows of the former, highest first; attributes ``patch_size``, ``patch_size_level0``,
    ``spacing_um``. Of a model with an attention a class also ``coarse_attention`` and ``fine_attention``, float32
    (classes, patches), whose attribute ``classes`` names the rows; ``attention`` is then the fine verdict's.

    Args:
        folder: where the file goes.
        outcomes: the stages, coarse to fine.
        hierarchy: names the classes; None where there is no such model.
    """
    with (
        atomic_path(folder / ATTENTION_NAME) as temporary,
        h5py.File(temporary, "w", track_order=True) as file,
    ):
        for outcome in outcomes:
            group = file.create_group(outcome.geometry.name)
            group.attrs["patch_size"] = outcome.geometry.patch_px
            group.attrs["patch_size_level0"] = outcome.geometry.patch_level0
            group.attrs["spacing_um"] = outcome.geometry.spacing_um
            group.create_dataset("coords", data=outcome.coords)
            group.create_dataset("attention", data=outcome.attention)
            group.create_dataset("kept", data=outcome.kept)
            for spec, classes in _class_attention(outcome, hierarchy):
                group.create_dataset(spec.name, data=outcome.outputs[spec.name]).attrs["classes"] = list(classes)


def _class_attention(
    outcome: StageOutcome, hierarchy: Hierarchy | None
) -> tuple[tuple[TensorSpec, tuple[str, ...]], ...]:
    if hierarchy is None or FINE_ATTENTION.name not in outcome.outputs:
        return ()
    return (COARSE_ATTENTION, hierarchy.coarse), (FINE_ATTENTION, hierarchy.fine)
