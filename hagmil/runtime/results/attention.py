"""``attention.h5``: coordinates and attention of every patch of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import h5py

from hagmil._files import write_bytes
from hagmil.bundle import Hierarchy
from hagmil.errors import DataError, one_line
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.results.result import ATTENTION_NAME, StageAttention
from hagmil.spec import ATTENTION, COARSE_ATTENTION, EVIDENCE, FINE_ATTENTION

CLASS_ATTENTION_NAME = "class_attention"


def stage_attention(stage: StageOutcome) -> StageAttention:
    """The arrays of one stage that a result holds and ``attention.h5`` stores."""
    by_class = stage.outputs.get(ATTENTION.name)
    return StageAttention(
        name=stage.geometry.name,
        spacing_um=stage.geometry.spacing_um,
        patch_px=stage.geometry.patch_px,
        patch_level0=stage.geometry.patch_level0,
        coords=stage.coords,
        attention=stage.attention,
        kept=stage.kept,
        coarse_attention=stage.outputs.get(COARSE_ATTENTION.name),
        fine_attention=stage.outputs.get(FINE_ATTENTION.name),
        evidence=stage.outputs.get(EVIDENCE.name),
        class_attention=by_class if by_class is not None and by_class.ndim == 2 else None,
    )


def write_attention(folder: Path, outcomes: Sequence[StageOutcome], hierarchy: Hierarchy | None = None) -> None:
    """Write ``attention.h5``, one group for each stage.

    A group contains ``coords`` int64 (patches, 2), level-0 top-left (x, y); ``attention`` float32 (patches,); ``kept``
    int64 (kept,), row numbers of ``coords``, highest attention first; and the attributes ``patch_size``,
    ``patch_size_level0`` and ``spacing_um``. For HMIL it also contains ``coarse_attention`` and ``fine_attention``,
    float32 (classes, patches), with the attribute ``classes``; ``attention`` is then that of the predicted fine class.
    For heads with one attention for each class it also contains ``class_attention``, float32 (classes, patches);
    ``attention`` is then that of the predicted class.
    For additive models it also contains ``evidence``, float32 (classes, patches), what each patch adds to each logit of
    the stage.

    Args:
        folder: the folder of the file.
        outcomes: the stages, coarse to fine.
        hierarchy: gives the names of the classes; None if labels have one layer.
    """
    content = BytesIO()  # the HDF5 library may crash if it writes to a full disk
    with h5py.File(content, "w", track_order=True) as file:
        for stage in map(stage_attention, outcomes):
            group = file.create_group(stage.name)
            group.attrs["patch_size"] = stage.patch_px
            group.attrs["patch_size_level0"] = stage.patch_level0
            group.attrs["spacing_um"] = stage.spacing_um
            group.create_dataset("coords", data=stage.coords)
            group.create_dataset("attention", data=stage.attention)
            group.create_dataset("kept", data=stage.kept)
            if stage.evidence is not None:
                group.create_dataset(EVIDENCE.name, data=stage.evidence)
            if stage.class_attention is not None:
                group.create_dataset(CLASS_ATTENTION_NAME, data=stage.class_attention)
            if hierarchy is not None and stage.coarse_attention is not None and stage.fine_attention is not None:
                coarse = group.create_dataset(COARSE_ATTENTION.name, data=stage.coarse_attention)
                fine = group.create_dataset(FINE_ATTENTION.name, data=stage.fine_attention)
                coarse.attrs["classes"], fine.attrs["classes"] = list(hierarchy.coarse), list(hierarchy.fine)
    write_bytes(folder / ATTENTION_NAME, content.getbuffer())


def read_attention(path: str | Path) -> tuple[StageAttention, ...]:
    """Read ``attention.h5``.

    Args:
        path: the file, or the folder of the slide's results.

    Returns:
        The arrays of each stage, coarse to fine.

    Raises:
        DataError: the file does not exist, or is not an attention file.
    """
    path = Path(path)
    path = path / ATTENTION_NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(f'"{path}" does not exist; run hagmil infer, or pass out to predict_slide')
    try:
        with h5py.File(path, "r") as file:
            return tuple(_read_stage(name, group) for name, group in file.items())
    except MemoryError:
        raise
    except Exception as error:  # h5py raises errors of many types for a damaged file
        raise DataError(f'"{path}" is not an attention file of hagmil: {one_line(str(error))}') from error


def _read_stage(name: str, group: h5py.Group) -> StageAttention:
    return StageAttention(
        name=name,
        spacing_um=float(group.attrs["spacing_um"]),
        patch_px=int(group.attrs["patch_size"]),
        patch_level0=int(group.attrs["patch_size_level0"]),
        coords=group["coords"][...],
        attention=group["attention"][...],
        kept=group["kept"][...],
        coarse_attention=group[COARSE_ATTENTION.name][...] if COARSE_ATTENTION.name in group else None,
        fine_attention=group[FINE_ATTENTION.name][...] if FINE_ATTENTION.name in group else None,
        evidence=group[EVIDENCE.name][...] if EVIDENCE.name in group else None,
        class_attention=group[CLASS_ATTENTION_NAME][...] if CLASS_ATTENTION_NAME in group else None,
    )
