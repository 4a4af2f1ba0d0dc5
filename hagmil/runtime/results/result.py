"""The result of one slide: ``result.json``, and the arrays that a result holds in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from hagmil._files import read_limited, write_text
from hagmil._models import FrozenModel, first_problem, read_json
from hagmil.bundle import LARGEST_JSON_BYTES
from hagmil.errors import DataError

RESULT_NAME = "result.json"
ATTENTION_NAME = "attention.h5"
HEATMAP_NAME = "heatmap.png"
REGIONS_NAME = "regions.geojson"

Status = Literal["ok", "rejected", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class StageAttention:
    """Coordinates and attention of the patches of one stage.

    Args:
        name: the stage's name.
        spacing_um: its spacing in micrometres per pixel.
        patch_px: side of a patch in pixels at that spacing.
        patch_level0: side of a patch in level-0 pixels.
        coords: int64 (patches, 2), level-0 top-left corners (x, y), in the order of the bag.
        attention: float32 (patches,), one score for each patch; higher means more attention.
        kept: int64 (kept,), row numbers of ``coords`` whose children the next stage read, highest attention first;
            empty for the last stage.
        coarse_attention: float32 (classes, patches), the attention of each coarse class; None except for HMIL.
        fine_attention: float32 (classes, patches), the attention of each fine class; None except for HMIL.
        evidence: float32 (classes, patches), what each patch adds to each logit of the stage; None except for additive
            models.
        class_attention: float32 (classes, patches), the attention of each class; None except for heads with one
            attention for each class.
    """

    name: str
    spacing_um: float
    patch_px: int
    patch_level0: int
    coords: NDArray[np.int64]
    attention: NDArray[np.float32]
    kept: NDArray[np.int64]
    coarse_attention: NDArray[np.float32] | None = None
    fine_attention: NDArray[np.float32] | None = None
    evidence: NDArray[np.float32] | None = None
    class_attention: NDArray[np.float32] | None = None


class StageResult(FrozenModel):
    """Counts and logits of one stage."""

    name: str
    spacing_um: float
    candidates: int = Field(ge=0, description="patches that the quadtree offered")
    encoded: int = Field(ge=0, description="patches that the backbone encoded")
    kept: int = Field(ge=0, description="patches whose children the next stage read; 0 for the last stage")
    logits: tuple[float, ...]


class AdaptiveStep(FrozenModel):
    """The verdict with one number of kept patches, of an adaptive run.

    A margin is the highest minus the second highest logit, before the temperature.
    """

    keep: int = Field(ge=1, description="patches kept at each stage but the last")
    patches_read: int = Field(ge=1, description="patches of all stages, of this step and all earlier steps")
    prediction: str
    margin: float = Field(ge=0)
    top_prediction: str = Field(description="of the last stage's patches with the highest attention alone")
    top_margin: float = Field(ge=0)


class LayerResult(FrozenModel):
    """The verdict in one of two layers of labels."""

    prediction: str
    probabilities: dict[str, float]


class Result(FrozenModel):
    """The verdict on one slide and how it was reached, or why there is none."""

    _attention: tuple[StageAttention, ...] = PrivateAttr(default=())

    format: Literal["hagmil-result"] = "hagmil-result"
    format_version: Literal[1] = 1
    slide_id: str = Field(description="unique name of the slide in its run; name of the result's folder")
    slide: str = Field(description="the path as it was given")
    status: Status = Field(description="ok; rejected: not suitable for the model; failed: cannot be read or processed")
    code: str | None = Field(default=None, description="why there is no verdict, as one stable word")
    message: str | None = Field(default=None, description="why there is no verdict, for a person")
    prediction: str | None = Field(default=None, description="the fine class if labels have two layers")
    probabilities: dict[str, float] = Field(default_factory=dict, description="by class; they sum to 1")
    coarse: LayerResult | None = Field(
        default=None, description="null if labels have one layer, like the next three fields"
    )
    fine: LayerResult | None = None
    layers_agree: bool | None = Field(default=None, description="whether the fine class belongs to the coarse one")
    coarse_from_fine: dict[str, float] | None = Field(
        default=None, description="the fine probabilities summed into coarse classes"
    )
    temperature: float | None = Field(
        default=None, description="the verdict's logits were divided by it; null if the bundle is not calibrated"
    )
    stages: tuple[StageResult, ...] = Field(default=(), description="counts and logits of each stage, coarse to fine")
    timing_s: dict[str, float] = Field(
        default_factory=dict,
        description="wall-clock seconds by step, and in total. A slide that was prepared while the previous one ran "
        "also has `wait`; the total then excludes the steps before `wait`",
    )
    provider: str | None = Field(default=None, description="execution provider or engine that ran the graphs")
    precision: str | None = Field(default=None, description="of the bundle: fp32, fp16 or int8")
    spacing_um: float | None = Field(default=None, description="micrometres per level-0 pixel")
    spacing_source: Literal["metadata", "override"] | None = Field(
        default=None, description="metadata of the slide, or overridden by the user"
    )
    keep: int | None = Field(
        default=None,
        description="patches kept at each stage, if the bundle's number was overridden; in adaptive runs, the limit",
    )
    time_utc: str | None = Field(
        default=None, description="end of the slide in UTC, ISO 8601; null in results of earlier versions"
    )
    slide_sha256: str | None = Field(
        default=None,
        description="digest of the slide (docs/formats.md says which bytes it covers); null if the slide cannot be "
        "read or was changed meanwhile",
    )
    bundle_sha256: str = Field(description="digest of the bundle's manifest, which contains the digest of each file")
    versions: dict[str, str] = Field(description="versions of the packages used")
    sure: bool | None = Field(
        default=None,
        description="whether successive numbers of kept patches agree with a margin above the bundle's threshold; null "
        "except in adaptive runs, like `keep_used`",
    )
    keep_used: int | None = Field(default=None, description="patches kept at each stage for the verdict")
    adaptive_steps: tuple[AdaptiveStep, ...] = Field(
        default=(), description="each number of kept patches that ran; empty except in adaptive runs"
    )
    patches_left_out: int | None = Field(
        default=None,
        ge=0,
        description="patches of the coarsest stage left out because tiles have no bytes; null without a verdict",
    )
    warnings: tuple[str, ...] = Field(
        default=(), description="deviations that did not prevent a verdict; each begins with its code and a colon"
    )
    intended_use: str = Field(description="intended use according to the bundle")

    @property
    def attention(self) -> tuple[StageAttention, ...]:
        """Coordinates and attention of each stage, coarse to fine; empty if there is no verdict, or if the result was
        read from ``result.json`` (:func:`hagmil.read_attention` reads the arrays)."""
        return self._attention

    def with_attention(self, attention: Sequence[StageAttention]) -> Self:
        """A copy of the result that holds these arrays."""
        copy = self.model_copy()
        copy._attention = tuple(attention)
        return copy

    def __eq__(self, other: object) -> bool:
        """Whether all fields of ``result.json`` are equal; arrays are not compared."""
        return isinstance(other, Result) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # fields are dicts


def result_schema() -> str:
    """The JSON schema of ``result.json``, as published in docs/schemas."""
    return json.dumps(Result.model_json_schema(), indent=2) + "\n"


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json`` atomically."""
    write_text(folder / RESULT_NAME, result.model_dump_json(indent=2) + "\n")


def read_result(folder: str | Path) -> Result:
    """Read ``result.json``.

    Args:
        folder: the folder of the slide's results.

    Raises:
        DataError: the file does not exist, cannot be read, or is not a result of this version.
    """
    path = Path(folder) / RESULT_NAME
    try:
        return read_json(Result, read_limited(path, LARGEST_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(f'result "{path}" cannot be read: {first_problem(error)}', code="result_unreadable") from error
