"""``backbone.json``, the description of an exported patch encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hagmil._files import sha256_of
from hagmil._models import FrozenModel
from hagmil.bundle.entries import BACKBONE_CARD_NAME, BACKBONE_ONNX_NAME, Digest
from hagmil.bundle.manifest import first_problem
from hagmil.errors import BundleError


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
