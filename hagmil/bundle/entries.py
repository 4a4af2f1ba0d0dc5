"""Names and types that several parts of a manifest share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hagmil._models import FrozenModel, Within
from hagmil.spec import Count

MANIFEST_NAME = "bundle.json"
SELFTEST_NAME = "selftest.npz"
BACKBONE_CARD_NAME = "backbone.json"
BACKBONE_ONNX_NAME = "backbone.onnx"
LARGEST_JSON_BYTES = 16 << 20
"""Largest manifest or card that is read."""
RESEARCH_USE_ONLY = "Research use only. Not for diagnosis."

Precision = Literal["fp32", "fp16", "int8"]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Temperature = Annotated[float, Within(0.001, 1000)]
Opset = Annotated[int, Within(0, 1000)]


def _plain_path(name: str) -> str:
    """Check that a name is a relative path to a file inside a folder, written in one way only."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or len(part) > _LONGEST_NAME for part in parts):
        raise ValueError(f"{name!r} is not a plain relative path")
    if "\\" in name or ":" in name or not name.isprintable():
        raise ValueError(f"{name!r} contains a character that file names in a bundle cannot have")
    return name


_LONGEST_NAME = 255  # the limit of most file systems
PlainPath = Annotated[str, AfterValidator(_plain_path)]
"""Path of a file in a folder: relative, with ``/``, without ``.`` and ``..``."""

GraphPath = Annotated[PlainPath, Field(pattern=r"\.onnx$")]
"""Path of an ONNX file. ONNX Runtime reads other formats by other suffixes."""


class FileEntry(FrozenModel):
    """Size and digest of one file of a bundle."""

    sha256: Digest
    bytes: Count
