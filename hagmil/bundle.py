"""The bundle: the folder that is deployed, its manifest, and the digests that bind them.

A bundle holds ``bundle.json`` (the manifest, :class:`Manifest`), ``backbone.onnx``, one ``<stage>.onnx`` a stage,
``selftest.npz``, ``MODEL_CARD.md`` and, optionally, ``engines/``. Every file but the manifest is listed in it with its
size and SHA-256; the SHA-256 of the manifest itself therefore names the whole (``bundle_sha256`` in results).
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
from hagmil.spec import Kind
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
    """One step of the hierarchy: its spacing, its model, and how many patches it keeps for the next."""

    name: StageName
    spacing_um: float = Field(gt=0, description="micrometres per pixel")
    keep: int | None = Field(default=None, ge=1, description="patches kept for the next stage; null on the last")
    onnx: str


class Backbone(FrozenModel):
    """The patch encoder: its graph, the length of its feature vector, and its name."""

    onnx: str
    features: int = Field(ge=1)
    name: str
    reduced_from: Digest | None = Field(
        default=None,
        description="digest of the fp32 graph that it was made from, whose features the models were trained on; "
        "null where it is that very graph",
    )


class Hierarchy(FrozenModel):
    """Labels in two layers: fine class i belongs to coarse class ``fine_to_coarse[i]``."""

    coarse: tuple[str, ...] = Field(min_length=2)
    fine: tuple[str, ...] = Field(min_length=2)
    fine_to_coarse: tuple[int, ...]

    @model_validator(mode="after")
    def _every_fine_class_has_a_parent(self) -> Hierarchy:
        if len(self.fine_to_coarse) != len(self.fine):
            raise ValueError("fine_to_coarse must name a coarse class for each fine one")
        if set(self.fine_to_coarse) != set(range(len(self.coarse))):
            raise ValueError("fine_to_coarse must use every coarse class and no other")
        return self


class Provenance(FrozenModel):
    """Where the weights came from."""

    created: datetime
    hagmil: str = Field(description="version of hagmil that wrote the bundle")
    versions: dict[str, str] = Field(description="versions of the packages that took part in the export")
    checkpoint_sha256: str = Field(description="digest of the checkpoint's weights")
    backbone_weights: str = Field(description="what the backbone's weights are")
    training: dict[str, Any] = Field(default_factory=dict, description="what the checkpoint says of its training")


class Throughput(FrozenModel):
    """Patches a second of a backbone in float32 and in int8, measured in turns in one process."""

    fp32_patches_per_s: float = Field(gt=0)
    int8_patches_per_s: float = Field(gt=0)
    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    processor: str = Field(description="of the machine that this was measured on")

    @property
    def gain(self) -> float:
        """How many times more patches a second int8 encodes; below 1 where it is slower."""
        return self.int8_patches_per_s / self.fp32_patches_per_s


class Quantization(FrozenModel):
    """How a backbone was brought to int8, how far it agrees with its float32 graph, and what that gains."""

    scheme: Literal["static QDQ, uint8 activations, int8 weights per channel"] = (
        "static QDQ, uint8 activations, int8 weights per channel"
    )
    reduced_range: bool = Field(description="weights have 7 bits, so that sums of products are exact on every CPU")
    first_product: Literal["int8", "fp32"] = Field(
        description="of the first matrix product, which reads pixels; float32 where that lowered the error by a quarter"
    )
    calibration: str = Field(description="the slides that patches were drawn from, in words")
    calibration_patches: int = Field(ge=1)
    compared_patches: int = Field(ge=1, description="others of the same slides, on which features were compared")
    least_cosine: float = Field(description="smallest cosine between a patch's features in int8 and in float32")
    allowed_cosine: float
    relative_error: float = Field(ge=0, description="norm of the features' difference over their norm, all patches")
    allowed_relative_error: float
    compared_slides: str | None = Field(default=None, description="slides whose verdicts were compared, in words")
    verdicts: int = Field(default=0, ge=0, description="slides that have one from the float32 models")
    equal_verdicts: int = Field(default=0, ge=0)
    kept_alike: dict[str, float] = Field(
        default_factory=dict, description="by stage, the share of kept patches that are the same"
    )
    allowed_alike: float
    throughput: Throughput


class ShapeRange(FrozenModel):
    """The shapes of one input that an engine takes."""

    minimum: tuple[int, ...] = Field(min_length=1)
    optimum: tuple[int, ...] = Field(description="the shape that the engine is fastest at")
    maximum: tuple[int, ...]

    @model_validator(mode="after")
    def _rises(self) -> ShapeRange:
        axes = zip(self.minimum, self.optimum, self.maximum, strict=True)
        if not all(1 <= least <= best <= most for least, best, most in axes):
            raise ValueError("shapes must rise from 1 on every axis: minimum, optimum, maximum")
        return self


Profile = dict[str, ShapeRange]
"""An optimisation profile: a range of shapes for every input, by its name."""


class EngineEntry(FrozenModel):
    """A TensorRT engine: the graph that it stands for, and what it is bound to."""

    file: str = Field(description="the engine's file in the bundle")
    graph: str = Field(description="the ONNX file that it was built from")
    onnx_sha256: Digest = Field(description="digest of that file when the engine was built")
    flavour: FlavourName
    flavour_version: str
    capabilities: tuple[Capability, ...] = Field(min_length=1, description="compute capabilities of its GPUs")
    precision: EnginePrecision = Field(description="the smallest floating type that the graph computes in")
    profiles: tuple[Profile, ...] = Field(min_length=1)
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    memory_bytes: int | None = Field(
        default=None,
        ge=0,
        description="of the GPU that a run takes beside the weights, at the largest shapes; null: not known",
    )


class Manifest(FrozenModel):
    """``bundle.json``: what a bundle is, and what is in it."""

    format: Literal["hagmil-bundle"] = "hagmil-bundle"
    format_version: Literal[1] = 1
    kind: Kind
    classes: tuple[str, ...] = Field(min_length=2, description="the classes of the verdict, in the order of its logits")
    hierarchy: Hierarchy | None = None
    patch_px: int = Field(ge=8, description="side of a patch in pixels, at every stage")
    stages: tuple[Stage, ...] = Field(min_length=1, description="coarse to fine")
    backbone: Backbone
    tissue: TissueParameters
    precision: Precision = Field(description="of all graphs; with int8 of the backbone, the stages are fp32 then")
    quantization: Quantization | None = Field(default=None, description="of the backbone, where precision is int8")
    opsets: dict[str, int] = Field(
        default_factory=dict, description="version of the standard operators that each graph uses, by its file"
    )
    temperature: Temperature | None = Field(
        default=None, description="that the verdict's logits are divided by; null: not calibrated"
    )
    coarse_temperature: Temperature | None = Field(default=None, description="the same for the coarse classes")
    engines: tuple[EngineEntry, ...] = Field(default=(), description="TensorRT engines, where there are any")
    files: dict[str, FileEntry]
    provenance: Provenance
    intended_use: str

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Manifest:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages share a name")
        spacings = [stage.spacing_um for stage in self.stages]
        if any(coarse <= fine for coarse, fine in pairwise(spacings)):
            raise ValueError("stages must run from coarse to fine")
        if any((stage.keep is None) != (stage is self.stages[-1]) for stage in self.stages):
            raise ValueError("keep must be null on the last stage and a number on all others")
        if self.hierarchy is not None and self.hierarchy.fine != self.classes:
            raise ValueError("classes must be the hierarchy's fine classes")
        if self.kind == "hmil" and (self.hierarchy is None or len(self.stages) != 1):
            raise ValueError("kind hmil has a hierarchy and one stage")
        if self.quantization is not None and self.precision != "int8":
            raise ValueError("quantization goes with precision int8")
        if self.coarse_temperature is not None and self.hierarchy is None:
            raise ValueError("coarse_temperature goes with a hierarchy")
        absent = {self.backbone.onnx, *(stage.onnx for stage in self.stages)} - self.files.keys()
        if absent:
            raise ValueError(f"models not listed in files: {', '.join(sorted(absent))}")
        named = {name for engine in self.engines for name in (engine.file, engine.graph)} - self.files.keys()
        if named:
            raise ValueError(f"engines or their graphs not listed in files: {', '.join(sorted(named))}")
        return self


class BackboneCard(FrozenModel):
    """``backbone.json`` beside a backbone's ONNX file: what the patch encoder is."""

    format: Literal["hagmil-backbone"] = "hagmil-backbone"
    format_version: Literal[1] = 1
    name: str
    onnx: str = BACKBONE_ONNX_NAME
    sha256: Digest
    weights_files: dict[str, Digest] = Field(
        default_factory=dict, description="files beside the graph that hold weights of it, where it is above 2 GB"
    )
    features: int = Field(ge=1, description="length of the feature vector")
    patch_px: int | None = Field(description="side of the patches it takes, in pixels; null where any will do")
    weights: str = Field(description="where the weights came from: a file and its digest, random, ...")
    mean: tuple[float, float, float] | None = Field(description="per channel, of pixels in 0..1; null where unknown")
    std: tuple[float, float, float] | None
    opset: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle.

    Args:
        path: its folder.
        manifest: what it says of itself.
        sha256: digest of the manifest, which names every other file's digest.
    """

    path: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open a bundle, and refuse it unless every file is what its manifest says.

    Args:
        path: the bundle's folder.
        verify: check sizes and digests of all files.

    Raises:
        BundleError: no bundle, an invalid manifest, or a file that is missing or altered.
    """
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        raise BundleError(f'"{path}" is no bundle: it has no {MANIFEST_NAME}', code="bundle_missing")
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


def open_backbone(path: Path) -> BackboneCard:
    """Read what a backbone's folder says of it, and check that its ONNX file is the one that it speaks of.

    Args:
        path: a folder that ``hagmil export-backbone`` wrote.

    Raises:
        BundleError: no backbone, an invalid card, or another ONNX file than the card's.
    """
    card_path = path / BACKBONE_CARD_NAME
    if not card_path.is_file():
        raise BundleError(f'"{path}" is no backbone: it has no {BACKBONE_CARD_NAME}; run hagmil export-backbone')
    try:
        card = BackboneCard.model_validate_json(card_path.read_bytes())
    except ValidationError as error:
        raise BundleError(f'"{card_path}" is not valid: {first_problem(error)}', code="bundle_invalid") from error
    for name, sha256 in {card.onnx: card.sha256, **card.weights_files}.items():
        if not (path / name).is_file() or sha256_of(path / name) != sha256:
            raise BundleError(
                f'"{path / name}" is not the file that {BACKBONE_CARD_NAME} speaks of', code="digest_mismatch"
            )
    return card


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside ``target`` that becomes ``target`` when the block ends well.

    Args:
        target: where the folder shall be.
        overwrite: replace what is there; without it a non-empty ``target`` is an error.

    Raises:
        UsageError: ``target`` is there already.
    """
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f'"{target}" is there already; choose another folder or pass --overwrite', code="exists")
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
    """Size and digest of every file in a folder but the manifest, by its path relative to the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``bundle.json`` into a folder whose files are all in place."""
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def manifest_schema() -> str:
    """The JSON schema of ``bundle.json``, as published in docs/schemas."""
    return json.dumps(Manifest.model_json_schema(), indent=2) + "\n"


def first_problem(error: ValidationError) -> str:
    """The first complaint of a pydantic error in one line: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg']}{more}"


def check_file(bundle: Bundle, name: str) -> None:
    """Hold one file of a bundle against its manifest.

    Raises:
        BundleError: it is missing, or another than the manifest's.
    """
    path, entry = bundle.file(name), bundle.manifest.files[name]
    if not path.is_file():
        raise BundleError(f'bundle "{bundle.path}": file {name} is missing', code="file_missing")
    if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
        raise BundleError(
            f'bundle "{bundle.path}": file {name} was altered (its digest is not the manifest\'s)',
            code="digest_mismatch",
        )
