"""``backbone.json``, the description of an exported patch encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hagmil._files import read_limited, sha256_of
from hagmil._models import FrozenModel, Within, first_problem, read_json
from hagmil.bundle.entries import (
    BACKBONE_CARD_NAME,
    BACKBONE_ONNX_NAME,
    LARGEST_JSON_BYTES,
    Digest,
    GraphPath,
    Opset,
    PlainPath,
)
from hagmil.bundle.listed_files import check_listed_files, check_references
from hagmil.errors import BundleError
from hagmil.spec import FeatureLength, PatchPx

MEANS = Within(0, 1)
DEVIATIONS = Within(0.001, 1)
Mean = Annotated[float, MEANS]
Deviation = Annotated[float, DEVIATIONS]


class BackboneCard(FrozenModel):
    """``backbone.json`` in the folder of a backbone: description of the patch encoder."""

    format: Literal["hagmil-backbone"] = "hagmil-backbone"
    format_version: Literal[1] = 1
    name: str
    onnx: GraphPath = BACKBONE_ONNX_NAME
    sha256: Digest = Field(
        description="digest of the graph, which contains the digest of weights in another file; it identifies the "
        "backbone in checkpoints and feature files"
    )
    weights_files: dict[PlainPath, Digest] = Field(
        default_factory=dict, description="files with weights of the graph, if it is larger than 2 GB"
    )
    features: FeatureLength = Field(description="length of the feature vector")
    patch_px: PatchPx | None = Field(description="side of a patch in pixels; null if any size is accepted")
    weights: str = Field(description="origin of the weights: a file and its digest, random, ...")
    mean: tuple[Mean, Mean, Mean] | None = Field(description="per channel, of pixels in 0..1; null if unknown")
    std: tuple[Deviation, Deviation, Deviation] | None
    opset: Opset
    domains: tuple[str, ...] = Field(
        default=(), description="domains of the graph's operators besides the standard domain of ONNX"
    )
    versions: dict[str, str]


def open_backbone(path: str | Path) -> BackboneCard:
    """Read ``backbone.json`` of a backbone and check the digests of its files.

    Args:
        path: a folder written by ``hagmil export-backbone``.

    Raises:
        BundleError: there is no backbone, its card is invalid, a file is missing or altered, or the graph has weights
            or operators that the card does not list.
    """
    path = Path(path)
    card_path = path / BACKBONE_CARD_NAME
    if not card_path.is_file():
        raise BundleError(f'"{path}" is not a backbone: it has no {BACKBONE_CARD_NAME}; run hagmil export-backbone')
    try:
        card = read_json(BackboneCard, read_limited(card_path, LARGEST_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise BundleError(f'"{card_path}" is not valid: {first_problem(error)}', code="bundle_invalid") from error
    digests = {**card.weights_files, card.onnx: card.sha256}
    check_listed_files(path, digests)
    for name, sha256 in digests.items():
        if sha256_of(path / name) != sha256:
            raise BundleError(
                f'"{path / name}" does not match its digest in {BACKBONE_CARD_NAME}; export the backbone again',
                code="digest_mismatch",
            )
    references = check_references(path, card.onnx, digests, card.domains)
    if not {digests[name] for name in references.data_files} <= references.weights_sha256:
        raise BundleError(
            f'"{path / card.onnx}" does not contain the digest of its weights, so that its own digest does not cover '
            "them; export the backbone again",
            code="digest_mismatch",
        )
    return card
