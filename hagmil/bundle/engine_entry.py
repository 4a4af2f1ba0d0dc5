"""Manifest section ``engines``: TensorRT engines of a bundle, and where they are valid."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hagmil._models import FrozenModel, Within
from hagmil.bundle.entries import Digest, GraphPath, PlainPath
from hagmil.spec import Count

FlavourName = Literal["tensorrt", "tensorrt-rtx"]
EnginePrecision = Literal["fp32", "fp16", "bf16"]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
Capability = Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]
Shape = tuple[Annotated[int, Within(1, 2**31 - 1)], ...]


class ShapeRange(FrozenModel):
    """The shapes of one input that an engine accepts."""

    minimum: Shape = Field(min_length=1)
    optimum: Shape = Field(description="shape for which the engine is fastest")
    maximum: Shape

    @model_validator(mode="after")
    def _check_order(self) -> ShapeRange:
        axes = zip(self.minimum, self.optimum, self.maximum, strict=True)
        if not all(least <= best <= most for least, best, most in axes):
            raise ValueError("shapes must satisfy minimum <= optimum <= maximum on every axis")
        return self


Profile = dict[str, ShapeRange]
"""An optimisation profile: a range of shapes for each input name."""


class EngineEntry(FrozenModel):
    """A TensorRT engine, the graph it was built from, and the versions and GPUs for which it is valid."""

    file: PlainPath = Field(description="file of the engine in the bundle")
    graph: GraphPath = Field(description="the ONNX file from which it was built")
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
    memory_bytes: Count | None = Field(
        default=None,
        description="GPU memory of a run in addition to the weights, at the largest shapes; null if unknown",
    )
