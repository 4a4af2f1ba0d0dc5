"""``bundle.json``, the manifest of a bundle."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from hagmil._models import FrozenModel
from hagmil.bundle.engine_entry import EngineEntry
from hagmil.bundle.entries import (
    MANIFEST_NAME,
    Digest,
    FileEntry,
    GraphPath,
    Opset,
    PlainPath,
    Precision,
    StageName,
    Temperature,
)
from hagmil.bundle.quantization import Quantization
from hagmil.bundle.tested import Certainty, Tested
from hagmil.spec import (
    MOST_STAGES,
    AttentionForm,
    ClassNames,
    FeatureLength,
    Kind,
    PatchCount,
    PatchPx,
    Readout,
    SpacingUm,
)
from hagmil.tissue_parameters import TissueParameters


class Stage(FrozenModel):
    """One step of the cascade: spacing, stage model, and number of patches kept for the next stage."""

    name: StageName
    spacing_um: SpacingUm = Field(description="micrometres per pixel")
    keep: PatchCount | None = Field(
        default=None, description="patches kept for the next stage; null for the last stage"
    )
    onnx: GraphPath


class Backbone(FrozenModel):
    """The patch encoder: graph, length of the feature vector, and name."""

    onnx: GraphPath
    features: FeatureLength
    name: str
    reduced_from: Digest | None = Field(
        default=None,
        description="digest of the fp32 graph that this graph was made from and that the models were trained with; "
        "null if this is the fp32 graph",
    )


class Hierarchy(FrozenModel):
    """Labels with two layers: fine class i belongs to coarse class ``fine_to_coarse[i]``."""

    coarse: ClassNames
    fine: ClassNames
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


class Manifest(FrozenModel):
    """``bundle.json``: the contents of a bundle."""

    format: Literal["hagmil-bundle"] = "hagmil-bundle"
    format_version: Literal[1] = 1
    kind: Kind
    readout: Readout = Field(
        default="pooled", description="read-out of the stage models; additive models also give the evidence of patches"
    )
    attention: AttentionForm = Field(
        default="shared",
        description="attention of the stage models: one value for each patch, or one for each class and patch; the "
        "attention of kind hmil has tensors of its own",
    )
    classes: ClassNames = Field(description="classes of the verdict, in the order of the logits")
    hierarchy: Hierarchy | None = None
    patch_px: PatchPx = Field(description="side of a patch in pixels, at every stage")
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=MOST_STAGES, description="coarse to fine")
    backbone: Backbone
    tissue: TissueParameters
    precision: Precision = Field(
        description="precision of all graphs; with int8, of the backbone only, and the stages are fp32"
    )
    quantization: Quantization | None = Field(
        default=None, description="quantisation of the backbone, if precision is int8"
    )
    opsets: dict[str, Opset] = Field(default_factory=dict, description="opset version of each graph, by file name")
    domains: tuple[str, ...] = Field(
        default=(), description="domains of the graphs' operators besides the standard domain of ONNX"
    )
    temperature: Temperature | None = Field(
        default=None, description="divisor of the logits of the verdict; null if the bundle is not calibrated"
    )
    coarse_temperature: Temperature | None = Field(
        default=None, description="divisor of the logits of the coarse classes"
    )
    engines: tuple[EngineEntry, ...] = Field(default=(), description="TensorRT engines in the bundle")
    tested: Tested | None = Field(default=None, description="where the verdict was tested; null if it was not")
    certainty: Certainty | None = Field(
        default=None, description="when the adaptive cascade calls a verdict sure; null if it was not calibrated"
    )
    files: dict[PlainPath, FileEntry] = Field(description="every file of the bundle but the manifest itself")
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
        if self.kind not in ("hag-mil", "hmil") and (self.hierarchy is not None or len(self.stages) != 1):
            raise ValueError(f"kind {self.kind} requires exactly one stage and no hierarchy")
        if self.attention == "per_class" and len(self.stages) != 1:
            raise ValueError("attention per_class requires exactly one stage")
        if self.readout == "additive" and self.kind != "hag-mil":
            raise ValueError("readout additive requires kind hag-mil")
        if self.quantization is not None and self.precision != "int8":
            raise ValueError("quantization requires precision int8")
        if self.coarse_temperature is not None and self.hierarchy is None:
            raise ValueError("coarse_temperature requires a hierarchy")
        if MANIFEST_NAME in self.files:
            raise ValueError(f"files cannot list {MANIFEST_NAME} itself")
        absent = {self.backbone.onnx, *(stage.onnx for stage in self.stages)} - self.files.keys()
        if absent:
            raise ValueError(f"models not listed in files: {', '.join(sorted(absent))}")
        named = {name for engine in self.engines for name in (engine.file, engine.graph)} - self.files.keys()
        if named:
            raise ValueError(f"engines or their graphs not listed in files: {', '.join(sorted(named))}")
        return self


def manifest_schema() -> str:
    """Return the JSON schema of ``bundle.json``, as published in docs/schemas."""
    return json.dumps(Manifest.model_json_schema(), indent=2) + "\n"
