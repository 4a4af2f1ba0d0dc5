"""Names and types that several parts of a manifest share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hagmil._models import FrozenModel

MANIFEST_NAME = "bundle.json"
SELFTEST_NAME = "selftest.npz"
BACKBONE_CARD_NAME = "backbone.json"
BACKBONE_ONNX_NAME = "backbone.onnx"
RESEARCH_USE_ONLY = "Research use only. Not for diagnosis."

Precision = Literal["fp32", "fp16", "int8"]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FileEntry(FrozenModel):
    """Size and digest of one file of a bundle."""

    sha256: Digest
    bytes: int = Field(ge=0)
