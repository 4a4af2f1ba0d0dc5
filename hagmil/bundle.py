"""The bundle (the folder that is deployed), its manifest and its digests.

A bundle contains ``bundle.json`` (the manifest, :class:`Manifest`), ``backbone.onnx``, one ``<stage>.onnx`` per stage,
``selftest.npz``, ``MODEL_CARD.md`` and, optionally, ``engines/``. The manifest lists every other file with its size and
SHA-256. The SHA-256 of the manifest therefore identifies the whole bundle (``bundle_sha256`` in results).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError, model_validator

from hagmil._files import sha256_of, write_text
from hagmil._models import FrozenModel
from hagmil.errors import BundleError, UsageError
from hagmil.spec import Kind, Readout
from hagmil.tissue_parameters import TissueParameters

MANIFEST_NAME = "bundle.json"
SELFTEST_NAME = "selftest.npz"
BACKBONE_CARD_NAME = "backbone.json"
BACKBONE_ONNX_NAME = "backbone.onnx"
RESEARCH_USE_ONLY = "Research use only. Not for diagnosis."

Precision = Literal["fp32", "fp16", "int8"]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FlavourName = Literal["tensorrt", "tensorrt-rtx"]
EnginePrecision = Literal["fp32", "fp16", "bf16"]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
Capability = Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]


class FileEntry(FrozenModel):
    """Size and digest of one file of a bundle."""

    sha256: Digest
    bytes: int = Field(ge=0)


class Stage(FrozenModel):
    """One step of the cascade: spacing, stage model, and number of patches kept for the next stage."""

    name: StageName
    spacing_um: float = Field(gt=0, description="micrometres per pixel")
    keep: int | None = Field(default=None, ge=1, description="patches kept for the next stage; null for the last stage")
    onnx: str


class Backbone(FrozenModel):
    """The patch encoder: graph, length of the feature vector, and name."""

    onnx: str
    features: int = Field(ge=1)
    name: str
    reduced_from: Digest | None = Field(
        default=None,
        description="digest of the fp32 graph that this graph was made from and that the models were trained with; "
        "null if this is the fp32 graph",
    )


class Hierarchy(FrozenModel):
    """Labels with two layers: fine class i belongs to coarse class ``fine_to_coarse[i]``."""

    coarse: tuple[str, ...] = Field(min_length=2)
    fine: tuple[str, ...] = Field(min_length=2)
    fine_to_coarse: tuple[int, ...]

    @model_validator(mode="after")
    def _check_classes(self) -> Hierarchy:
        if len(self.fine_to_coarse) != len(self.fine):
            raise ValueError("fine_to_coarse must give a coarse class for each fine class")
        if set(self.fine_to_coarse) != set(range(len(self.coarse))):
            raise ValueError("fine_to_coarse must use every coarse class and no other class")
        return self


class Provenance(FrozenModel):
    """Origin of the weights."""

    created: datetime
    hagmil: str = Field(description="version of hagmil that wrote the bundle")
    versions: dict[str, str] = Field(description="versions of the packages used for the export")
    checkpoint_sha256: str = Field(description="digest of the weights of the checkpoint")
    backbone_weights: str = Field(description="origin of the weights of the backbone")
    training: dict[str, Any] = Field(default_factory=dict, description="training record of the checkpoint")


class Throughput(FrozenModel):
    """Patches per second of a backbone in float32 and in int8, measured alternately in one process."""

    fp32_patches_per_s: float = Field(gt=0)
    int8_patches_per_s: float = Field(gt=0)
    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    processor: str = Field(description="processor of the machine on which this was measured")

    @property
    def gain(self) -> float:
        """Rate of int8 divided by the rate of float32; below 1 if int8 is slower."""
        return self.int8_patches_per_s / self.fp32_patches_per_s


class Quantization(FrozenModel):
    """How a backbone was quantised to int8, its agreement with the float32 graph, and its speed."""

    scheme: Literal["static QDQ, uint8 activations, int8 weights per channel"] = (
        "static QDQ, uint8 activations, int8 weights per channel"
    )
    reduced_range: bool = Field(description="weights have 7 bits, which makes sums of products exact on every CPU")
    first_product: Literal["int8", "fp32"] = Field(
        description="precision of the first matrix product; fp32 if that reduces the error by a quarter or more"
    )
    calibration: str = Field(description="description of the slides from which patches were drawn")
    calibration_patches: int = Field(ge=1)
    compared_patches: int = Field(ge=1, description="other patches of the same slides, on which features were compared")
    least_cosine: float = Field(description="smallest cosine between the features of a patch in int8 and in float32")
    allowed_cosine: float
    relative_error: float = Field(
        ge=0, description="norm of the difference divided by the norm of the features, all patches"
    )
    allowed_relative_error: float
    compared_slides: str | None = Field(
        default=None, description="description of the slides whose verdicts were compared"
    )
    verdicts: int = Field(default=0, ge=0, description="slides with a verdict from the float32 models")
    equal_verdicts: int = Field(default=0, ge=0)
    kept_alike: dict[str, float] = Field(
        default_factory=dict, description="share of kept patches that are equal, by stage"
    )
    allowed_alike: float
    throughput: Throughput


class ShapeRange(FrozenModel):
    """The shapes of one input that an engine accepts."""

    minimum: tuple[int, ...] = Field(min_length=1)
    optimum: tuple[int, ...] = Field(description="shape for which the engine is fastest")
    maximum: tuple[int, ...]

    @model_validator(mode="after")
    def _check_order(self) -> ShapeRange:
        axes = zip(self.minimum, self.optimum, self.maximum, strict=True)
        if not all(1 <= least <= best <= most for least, best, most in axes):
            raise ValueError("shapes must satisfy 1 <= minimum <= optimum <= maximum on every axis")
        return self


Profile = dict[str, ShapeRange]
"""An optimisation profile: a range of shapes for each input name."""


class EngineEntry(FrozenModel):
    """A TensorRT engine, the graph it was built from, and the versions and GPUs for which it is valid."""

    file: str = Field(description="file of the engine in the bundle")
    graph: str = Field(description="the ONNX file from which it was built")
    onnx_sha256: Digest = Field(description="digest of the ONNX file when the engine was built")
    flavour: FlavourName
    flavour_version: str
    capabilities: tuple[Capability, ...] = Field(
        min_length=1, description="compute capabilities of the GPUs for which it was built"
    )
    precision: EnginePrecision = Field(description="smallest floating-point type in the graph")
    profiles: tuple[Profile, ...] = Field(min_length=1)
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    memory_bytes: int | None = Field(
        default=None,
        ge=0,
        description="GPU memory of a run in addition to the weights, at the largest shapes; null if unknown",
    )


class Manifest(FrozenModel):
    """``bundle.json``: the contents of a bundle."""

    format: Literal["hagmil-bundle"] = "hagmil-bundle"
    format_version: Literal[1] = 1
    kind: Kind
    readout: Readout = Field(
        default="pooled", description="read-out of the stage models; additive models also give the evidence of patches"
    )
    classes: tuple[str, ...] = Field(min_length=2, description="classes of the verdict, in the order of the logits")
    hierarchy: Hierarchy | None = None
    patch_px: int = Field(ge=8, description="side of a patch in pixels, at every stage")
    stages: tuple[Stage, ...] = Field(min_length=1, description="coarse to fine")
    backbone: Backbone
    tissue: TissueParameters
    precision: Precision = Field(
        description="precision of all graphs; with int8, of the backbone only, and the stages are fp32"
    )
    quantization: Quantization | None = Field(
        default=None, description="quantisation of the backbone, if precision is int8"
    )
    opsets: dict[str, int] = Field(default_factory=dict, description="opset version of each graph, by file name")
    temperature: Temperature | None = Field(
        default=None, description="divisor of the logits of the verdict; null if the bundle is not calibrated"
    )
    coarse_temperature: Temperature | None = Field(
        default=None, description="divisor of the logits of the coarse classes"
    )
    engines: tuple[EngineEntry, ...] = Field(default=(), description="TensorRT engines in the bundle")
    files: dict[str, FileEntry]
    provenance: Provenance
    intended_use: str

    @model_validator(mode="after")
    def _check_consistency(self) -> Manifest:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages have the same name")
        spacings = [stage.spacing_um for stage in self.stages]
        if any(coarse <= fine for coarse, fine in pairwise(spacings)):
            raise ValueError("stages must be ordered from coarse to fine")
        if any((stage.keep is None) != (stage is self.stages[-1]) for stage in self.stages):
            raise ValueError("keep must be null for the last stage and a number for all others")
        if self.hierarchy is not None and self.hierarchy.fine != self.classes:
            raise ValueError("classes must be the hierarchy's fine classes")
        if self.kind == "hmil" and (self.hierarchy is None or len(self.stages) != 1):
            raise ValueError("kind hmil requires a hierarchy and exactly one stage")
        if self.readout == "additive" and self.kind != "hag-mil":
            raise ValueError("readout additive requires kind hag-mil")
        if self.quantization is not None and self.precision != "int8":
            raise ValueError("quantization requires precision int8")
        if self.coarse_temperature is not None and self.hierarchy is None:
            raise ValueError("coarse_temperature requires a hierarchy")
        absent = {self.backbone.onnx, *(stage.onnx for stage in self.stages)} - self.files.keys()
        if absent:
            raise ValueError(f"models not listed in files: {', '.join(sorted(absent))}")
        named = {name for engine in self.engines for name in (engine.file, engine.graph)} - self.files.keys()
        if named:
            raise ValueError(f"engines or their graphs not listed in files: {', '.join(sorted(named))}")
        return self


class BackboneCard(FrozenModel):
    """``backbone.json`` in the folder of a backbone: description of the patch encoder."""

    format: Literal["hagmil-backbone"] = "hagmil-backbone"
    format_version: Literal[1] = 1
    name: str
    onnx: str = BACKBONE_ONNX_NAME
    sha256: Digest
    weights_files: dict[str, Digest] = Field(
        default_factory=dict, description="files with weights of the graph, if it is larger than 2 GB"
    )
    features: int = Field(ge=1, description="length of the feature vector")
    patch_px: int | None = Field(description="side of a patch in pixels; null if any size is accepted")
    weights: str = Field(description="origin of the weights: a file and its digest, random, ...")
    mean: tuple[float, float, float] | None = Field(description="per channel, of pixels in 0..1; null if unknown")
    std: tuple[float, float, float] | None
    opset: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle.

    Args:
        path: folder of the bundle.
        manifest: contents of ``bundle.json``.
        sha256: digest of the manifest, which identifies the whole bundle.
    """

    path: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle."""
        return self.path / name


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Read the manifest of a bundle and check the digests of its files.

    Args:
        path: folder of the bundle.
        verify: check sizes and digests of all files.

    Returns:
        The bundle. Its graphs are not loaded; ``load_model`` does that.

    Raises:
        BundleError: there is no bundle, the manifest is invalid, or a file is missing or altered.
    """
    path = Path(path)
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        raise BundleError(f'"{path}" is not a bundle: it has no {MANIFEST_NAME}', code="bundle_missing")
    text = manifest_path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(
            f'bundle "{path}": {MANIFEST_NAME} is not valid: {first_problem(error)}', code="bundle_invalid"
        ) from error
    bundle = Bundle(path=path, manifest=manifest, sha256=hashlib.sha256(text).hexdigest())
    if verify:
        for name in manifest.files:
            check_file(bundle, name)
    return bundle


def open_backbone(path: str | Path) -> BackboneCard:
    """Read ``backbone.json`` of a backbone and check the digest of its ONNX file.

    Args:
        path: a folder written by ``hagmil export-backbone``.

    Raises:
        BundleError: there is no backbone, its card is invalid, or a digest differs.
    """
    path = Path(path)
    card_path = path / BACKBONE_CARD_NAME
    if not card_path.is_file():
        raise BundleError(f'"{path}" is not a backbone: it has no {BACKBONE_CARD_NAME}; run hagmil export-backbone')
    try:
        card = BackboneCard.model_validate_json(card_path.read_bytes())
    except ValidationError as error:
        raise BundleError(f'"{card_path}" is not valid: {first_problem(error)}', code="bundle_invalid") from error
    for name, sha256 in {card.onnx: card.sha256, **card.weights_files}.items():
        if not (path / name).is_file() or sha256_of(path / name) != sha256:
            raise BundleError(
                f'"{path / name}" does not match its digest in {BACKBONE_CARD_NAME}; export the backbone again',
                code="digest_mismatch",
            )
    return card


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that is renamed to ``target`` when the block succeeds.

    Args:
        target: the folder to write.
        overwrite: replace ``target`` if it exists; otherwise a non-empty ``target`` is an error.

    Yields:
        The folder to write to.

    Raises:
        UsageError: ``target`` exists and is not empty.
    """
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f'"{target}" exists; choose another folder or pass --overwrite', code="exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid4().hex}.part"
    staging.mkdir()
    try:
        yield staging
        if target.exists():
            replaced = target.parent / f".{target.name}.{uuid4().hex}.old"
            target.rename(replaced)
            staging.rename(target)
            rmtree(replaced)
        else:
            staging.rename(target)
    except BaseException:
        rmtree(staging, ignore_errors=True)
        raise


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Return size and digest of every file in a folder except the manifest, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``bundle.json``; all other files of the folder must be complete."""
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def manifest_schema() -> str:
    """Return the JSON schema of ``bundle.json``, as published in docs/schemas."""
    return json.dumps(Manifest.model_json_schema(), indent=2) + "\n"


def first_problem(error: ValidationError) -> str:
    """Return location and message of the first problem of a pydantic error, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg']}{more}"


def check_file(bundle: Bundle, name: str) -> None:
    """Check size and digest of one file of a bundle.

    Raises:
        BundleError: the file is missing or altered.
    """
    path, entry = bundle.file(name), bundle.manifest.files[name]
    if not path.is_file():
        raise BundleError(f'bundle "{bundle.path}": file {name} is missing', code="file_missing")
    if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
        raise BundleError(
            f'bundle "{bundle.path}": file {name} was altered (it does not match its digest in the manifest); '
            "copy or export the bundle again",
            code="digest_mismatch",
        )
