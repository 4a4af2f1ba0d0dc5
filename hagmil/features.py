"""Feature files: one HDF5 file per slide with one group per stage.

Layout (format version 1)::

    <slide_id>.h5          attributes: format, format_version, slide_id, slide_name, slide_sha256, slide_spacing_um,
    |                      spacing_source, backbone_name, backbone_sha256, tissue (JSON), stages (names, coarse to fine)
    └── <stage>            attributes: patch_size, patch_size_level0, spacing_um
        ├── coords         int64 (patches, 2): level-0 top-left corner (x, y)
        └── features       float16 or float32 (patches, dim)

Rows are in quadtree order: row i of a stage covers rows f²·i ... f²·i + f²-1 of the next finer stage. The groups of a
slide without tissue have zero rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hagmil._files import write_bytes
from hagmil._models import read_json
from hagmil.errors import DataError, one_line
from hagmil.spec import LARGEST_PATCH_PX, LONGEST_FEATURES, MOST_PATCHES, MOST_STAGES
from hagmil.tissue_parameters import TissueParameters

FORMAT = "hagmil-features"
FORMAT_VERSION = 1
_CHUNK_ROWS = 1024
_STAGE_SPACINGS_UM = (0.05, 100)
_SLIDE_SPACINGS_UM = (0.001, 1000)
_LARGEST_LEVEL0_PX = 2**31


@dataclass(frozen=True, slots=True)
class FeatureHeader:
    """File attributes of a feature file.

    Args:
        slide_id: unique name of the slide; the stem of the feature file.
        slide_name: file name of the slide.
        slide_sha256: digest of the slide (docs/formats.md says which bytes it covers); empty if it was not computed.
        slide_spacing_um: micrometres per level-0 pixel.
        spacing_source: ``metadata`` or ``override``.
        backbone_name: name of the patch encoder.
        backbone_sha256: digest of its ONNX file.
        tissue: parameters of the tissue mask that selected the patches of the coarsest stage.
        stages: names, coarse to fine.
        patches_left_out: patches of the coarsest stage that were left out because tiles of the slide have no bytes.
    """

    slide_id: str
    slide_name: str
    slide_sha256: str
    slide_spacing_um: float
    spacing_source: str
    backbone_name: str
    backbone_sha256: str
    tissue: TissueParameters
    stages: tuple[str, ...]
    patches_left_out: int = 0


@dataclass(frozen=True, slots=True)
class StageFeatures:
    """The bag of one slide at one stage.

    Args:
        name: the stage's name.
        coords: int64 (patches, 2), level-0 top-left corners (x, y), in quadtree order.
        features: float16 or float32 (patches, dim).
        patch_px: side of a patch at the stage's spacing, in pixels.
        patch_level0: side of a patch in level-0 pixels.
        spacing_um: spacing of the stage in micrometres per pixel.
    """

    name: str
    coords: NDArray[np.int64]
    features: NDArray[np.float16] | NDArray[np.float32]
    patch_px: int
    patch_level0: int
    spacing_um: float


@dataclass(frozen=True, slots=True)
class SlideFeatures:
    """The bags of one slide, coarse to fine.

    Args:
        header: file attributes.
        stages: one bag per stage.
    """

    header: FeatureHeader
    stages: tuple[StageFeatures, ...]


@dataclass(frozen=True, slots=True)
class StageOutline:
    """One stage of a feature file, without its arrays.

    Args:
        name: the stage's name.
        rows: number of patches.
        dim: length of a feature vector.
        dtype: type of the features, as named by NumPy.
        patch_px: side of a patch at the stage's spacing, in pixels.
        spacing_um: spacing of the stage in micrometres per pixel.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    patch_px: int
    spacing_um: float


def write_features(path: str | Path, slide: SlideFeatures) -> None:
    """Write the features of one slide to a file, atomically.

    Args:
        path: the ``.h5`` file to write.
        slide: the bags; ``slide.header.stages`` must be the names of the bags.

    Raises:
        DataError: stage names, shapes or types are inconsistent.
        EnvironmentLacks: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    _check(path, slide)
    content = BytesIO()  # the HDF5 library may crash if it writes to a full disk
    with h5py.File(content, "w", track_order=True) as file:
        file.attrs.update(_header_attributes(slide.header))
        for stage in slide.stages:
            group = file.create_group(stage.name)
            group.attrs["patch_size"] = stage.patch_px
            group.attrs["patch_size_level0"] = stage.patch_level0
            group.attrs["spacing_um"] = stage.spacing_um
            group.create_dataset("coords", data=stage.coords.astype(np.int64))
            rows, dim = stage.features.shape
            chunks = (min(rows, _CHUNK_ROWS), dim) if rows and dim else None
            group.create_dataset("features", data=stage.features, chunks=chunks)
    write_bytes(path, content.getbuffer())


def read_header(path: str | Path) -> FeatureHeader:
    """Read the file attributes of a feature file, without its arrays.

    Raises:
        DataError: the file is missing or damaged, or not a feature file of a supported version.
    """
    path = Path(path)
    with _open(path) as file:
        return _read_header(path, file)


def read_outline(path: str | Path) -> tuple[FeatureHeader, tuple[StageOutline, ...]]:
    """Read the file attributes of a feature file, and the sizes of its stages, without its arrays.

    Raises:
        DataError: the file is missing or damaged, or not a feature file of a supported version.
    """
    path = Path(path)
    with _open(path) as file:
        header = _read_header(path, file)
        return header, tuple(_read_stage_outline(path, file, name) for name in header.stages)


def read_features(path: str | Path, stages: Sequence[str] | None = None) -> SlideFeatures:
    """Read the features of one slide.

    Args:
        path: the ``.h5`` file.
        stages: names of the stages to read; the default is all, coarse to fine.

    Returns:
        The bags, in the order of ``stages``.

    Raises:
        DataError: the file is missing or damaged, or lacks a stage.
    """
    path = Path(path)
    with _open(path) as file:
        header = _read_header(path, file)
        names = header.stages if stages is None else tuple(stages)
        missing = [name for name in names if name not in header.stages]
        if missing:
            raise DataError(
                f'feature file "{path}" has no stage {", ".join(missing)}; its stages are {", ".join(header.stages)}'
            )
        return SlideFeatures(header=header, stages=tuple(_read_stage(path, file, name) for name in names))


def _check(path: Path, slide: SlideFeatures) -> None:
    if slide.header.stages != tuple(stage.name for stage in slide.stages):
        raise DataError(f'feature file "{path}": the stage names in the header and in the bags differ')
    for stage in slide.stages:
        if stage.coords.shape != (stage.features.shape[0], 2):
            raise DataError(
                f'feature file "{path}", stage {stage.name}: {stage.features.shape[0]} rows of features, but coords of '
                f"shape {stage.coords.shape}"
            )
        if stage.features.dtype not in (np.float16, np.float32):
            raise DataError(
                f'feature file "{path}", stage {stage.name}: type {stage.features.dtype} is not supported; '
                "convert the features to float16 or float32"
            )


def _header_attributes(header: FeatureHeader) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "slide_id": header.slide_id,
        "slide_name": header.slide_name,
        "slide_sha256": header.slide_sha256,
        "slide_spacing_um": header.slide_spacing_um,
        "spacing_source": header.spacing_source,
        "backbone_name": header.backbone_name,
        "backbone_sha256": header.backbone_sha256,
        "tissue": header.tissue.model_dump_json(),
        "stages": list(header.stages),
        **({"patches_left_out": header.patches_left_out} if header.patches_left_out else {}),
    }


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Open a feature file. Whatever h5py raises for a damaged file becomes a DataError."""
    if not path.is_file():
        raise DataError(f'feature file "{path}" does not exist; run hagmil extract', code="features_missing")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # h5py raises errors of many types
        problem = f'feature file "{path}" cannot be read: {one_line(str(error))}'
        raise DataError(problem, code="features_unreadable") from error


def _read_header(path: Path, file: h5py.File) -> FeatureHeader:
    attributes = file.attrs
    if attributes.get("format") != FORMAT:
        raise DataError(f'"{path}" is not a feature file of hagmil')
    if attributes["format_version"] != FORMAT_VERSION:
        raise DataError(
            f'feature file "{path}" has format version {attributes["format_version"]}; '
            f"this version of hagmil reads version {FORMAT_VERSION}"
        )
    stages = tuple(str(name) for name in attributes["stages"])
    if not 1 <= len(stages) <= MOST_STAGES or len(set(stages)) < len(stages) or "/" in "".join(stages):
        raise ValueError(f"it has {len(stages)} stages; 1 to {MOST_STAGES} with different plain names are possible")
    try:
        return FeatureHeader(
            slide_id=str(attributes["slide_id"]),
            slide_name=str(attributes["slide_name"]),
            slide_sha256=str(attributes["slide_sha256"]),
            slide_spacing_um=float(_number(file, "slide_spacing_um", *_SLIDE_SPACINGS_UM)),
            spacing_source=str(attributes["spacing_source"]),
            backbone_name=str(attributes["backbone_name"]),
            backbone_sha256=str(attributes["backbone_sha256"]),
            tissue=read_json(TissueParameters, attributes["tissue"]),
            stages=stages,
            patches_left_out=(
                int(_number(file, "patches_left_out", 0, MOST_PATCHES)) if "patches_left_out" in attributes else 0
            ),
        )
    except KeyError as error:
        raise DataError(f'feature file "{path}" lacks an attribute: {error}') from error


def _read_stage(path: Path, file: h5py.File, name: str) -> StageFeatures:
    outline = _read_stage_outline(path, file, name)
    group = file[name]
    coords = group["coords"][...]
    if outline.rows and not 0 <= coords.min() <= coords.max() < _LARGEST_LEVEL0_PX:
        raise ValueError(f"stage {name}: coords are outside 0 to {_LARGEST_LEVEL0_PX:,}")
    return StageFeatures(
        name=name,
        coords=coords,
        features=group["features"][...],
        patch_px=outline.patch_px,
        patch_level0=int(_number(group, "patch_size_level0", 1, _LARGEST_LEVEL0_PX)),
        spacing_um=outline.spacing_um,
    )


def _read_stage_outline(path: Path, file: h5py.File, name: str) -> StageOutline:
    group = _own(file, name)
    coords, features = _dataset(group, "coords", ("int64",)), _dataset(group, "features", ("float16", "float32"))
    if features.ndim != 2 or coords.shape != (features.shape[0], 2):
        raise DataError(
            f'feature file "{path}", stage {name}: features of shape {features.shape} do not fit coords of shape '
            f"{coords.shape}",
            code="features_unreadable",
        )
    rows, dim = features.shape
    if rows > MOST_PATCHES or dim > LONGEST_FEATURES:
        raise ValueError(f"stage {name}: {rows} x {dim} features; at most {MOST_PATCHES:,} x {LONGEST_FEATURES:,}")
    return StageOutline(
        name=name,
        rows=int(rows),
        dim=int(dim),
        dtype=str(features.dtype),
        patch_px=int(_number(group, "patch_size", 1, LARGEST_PATCH_PX)),
        spacing_um=float(_number(group, "spacing_um", *_STAGE_SPACINGS_UM)),
    )


def _own(group: h5py.Group, name: str) -> Any:
    """A member of a group; links to other places and files are not followed."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is missing or a link")
    return group[name]


def _dataset(group: h5py.Group, name: str, dtypes: tuple[str, ...]) -> h5py.Dataset:
    """A dataset whose values are in this file as they are, so that it takes no more memory than the file has bytes."""
    found = _own(group, name)
    if not isinstance(found, h5py.Dataset) or found.dtype not in dtypes:
        raise ValueError(f"{name} is not a dataset of {' or '.join(dtypes)}")
    if found.is_virtual or found.external or found.id.get_create_plist().get_nfilters():
        raise ValueError(f"{name} is compressed or in another file; repack it: h5repack -f NONE")
    if not 0 <= found.nbytes <= Path(found.file.filename).stat().st_size:
        raise ValueError(f"{name} of shape {found.shape} is larger than the file")
    return found


def _number(item: h5py.Group, name: str, low: float, high: float) -> float:
    """An attribute that is one number within bounds."""
    value = item.attrs[name]
    if not isinstance(value, np.integer | np.floating) or not low <= value <= high:  # also for NaN
        raise ValueError(f"attribute {name} is {value!s:.32}, outside {low:,} to {high:,}")
    return float(value)
