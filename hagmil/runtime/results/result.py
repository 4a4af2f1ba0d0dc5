"""What was found on a slide, as files: result.json, attention.h5, and the table over all slides."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from hagmil._files import write_text
from hagmil._models import FrozenModel

RESULT_NAME = "result.json"
ATTENTION_NAME = "attention.h5"
HEATMAP_NAME = "heatmap.png"
REGIONS_NAME = "regions.geojson"
TABLE_NAME = "results.csv"

Status = Literal["ok", "rejected", "failed"]


class StageResult(FrozenModel):
    """What one stage read and said."""

    name: str
    spacing_um: float
    candidates: int = Field(ge=0, description="patches that the quadtree offered")
    encoded: int = Field(ge=0, description="patches that the backbone saw")
    kept: int = Field(ge=0, description="patches whose children the next stage read; 0 on the last")
    logits: tuple[float, ...]


class LayerResult(FrozenModel):
    """The verdict in one layer of a hierarchy of labels."""

    prediction: str
    probabilities: dict[str, float]


class Result(FrozenModel):
    """``result.json``: one slide's verdict and where it came from, or why there is none."""

    format: Literal["hagmil-result"] = "hagmil-result"
    format_version: Literal[1] = 1
    slide_id: str
    slide: str = Field(description="the path as it was given")
    status: Status
    code: str | None = Field(default=None, description="why there is no verdict, in one stable word")
    message: str | None = Field(default=None, description="why there is no verdict, for a person")
    prediction: str | None = Field(default=None, description="with a hierarchy of labels the fine class")
    probabilities: dict[str, float] = Field(default_factory=dict)
    coarse: LayerResult | None = Field(default=None, description="null where labels have one layer; so the next three")
    fine: LayerResult | None = None
    layers_agree: bool | None = Field(default=None, description="whether the fine class belongs to the coarse one")
    coarse_from_fine: dict[str, float] | None = Field(
        default=None, description="the fine probabilities summed into coarse classes"
    )
    temperature: float | None = Field(
        default=None, description="that the verdict's logits were divided by; null: the bundle is not calibrated"
    )
    stages: tuple[StageResult, ...] = ()
    timing_s: dict[str, float] = Field(
        default_factory=dict,
        description="wall-clock seconds by step, and in total; with `wait` for a slide that was prepared while the one "
        "before it ran, whose steps until then are no part of the total",
    )
    provider: str | None = None
    precision: str | None = None
    spacing_um: float | None = Field(default=None, description="micrometres per level-0 pixel")
    spacing_source: Literal["metadata", "override"] | None = None
    keep: int | None = Field(default=None, description="patches kept a stage, where the bundle's own were overridden")
    bundle_sha256: str = Field(description="digest of the bundle's manifest, which names every weight's digest")
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    intended_use: str


def result_schema() -> str:
    """The JSON schema of ``result.json``, as published in docs/schemas."""
    return json.dumps(Result.model_json_schema(), indent=2) + "\n"


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json``, whole or not at all."""
    write_text(folder / RESULT_NAME, result.model_dump_json(indent=2) + "\n")


def read_result(folder: Path) -> Result:
    """Read a ``result.json`` back.

    Raises:
        OSError: it is not there.
        ValueError: it is no result of this version.
    """
    return Result.model_validate_json((folder / RESULT_NAME).read_bytes())


def table(results: Sequence[Result], classes: Sequence[str]) -> str:
    """``results.csv`` as text: one row for every slide that was asked for, failures too.

    Args:
        results: in the order of the rows.
        classes: the bundle's classes; each gets a column ``p_<class>``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["slide_id", "slide", "status", "code", "message", "prediction", "probability"]
    writer.writerow([*head, *(f"p_{name}" for name in classes), "seconds"])
    for result in results:
        writer.writerow(_row(result, classes))
    return text.getvalue()


def _row(result: Result, classes: Sequence[str]) -> list[str]:
    probability = result.probabilities[result.prediction] if result.prediction is not None else None
    values = [probability, *(result.probabilities.get(name) for name in classes)]
    return [
        result.slide_id,
        result.slide,
        result.status,
        result.code or "",
        result.message or "",
        result.prediction or "",
        *("" if value is None else f"{value:.6f}" for value in values),
        f"{result.timing_s.get('total', 0.0):.3f}",
    ]
