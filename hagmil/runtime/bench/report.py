"""``report.json``: the measurements, and the machine, slide, bundle and settings that they belong to."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from hagmil._models import FrozenModel
from hagmil.errors import UsageError

JSON_NAME = "report.json"
HTML_NAME = "report.html"
COMPARISON_NAME = "comparison.html"

_Seconds = tuple[float, ...]
_FORMER_STEP_NAMES = {"level models": "stage models"}
"""Names of steps in reports of earlier versions, and their present names."""


class Machine(FrozenModel):
    """The machine of the measurements."""

    system: str
    cpu: str
    cores: int = Field(ge=1, description="available to this process")
    memory_gb: float | None = Field(description="total memory; null if unknown")
    gpus: tuple[str, ...] = ()
    tile_kernel: str | None = Field(default=None, description="decoder of JPEG tiles; null in earlier reports")


class BenchSlide(FrozenModel):
    """The slide."""

    name: str
    phantom: bool = Field(description="whether it is a phantom made for this report")
    sha256: str
    bytes: int
    vendor: str
    width: int = Field(description="level-0 pixels")
    height: int = Field(description="level-0 pixels")
    spacing_um: float = Field(description="micrometres per level-0 pixel")
    spacing_source: str | None
    levels: int


class BenchBundle(FrozenModel):
    """The bundle."""

    name: str
    builtin: bool
    sha256: str = Field(description="digest of its manifest, which contains the digests of all its files")
    kind: str
    backbone: str
    features: int
    precision: str
    patch_px: int
    stages_um: dict[str, float] = Field(description="spacing of every stage, coarse to fine")


class Settings(FrozenModel):
    """The settings as given."""

    batch: int | None = Field(description="patches in a batch of the backbone; null: chosen for the provider")
    readers: int | None = Field(description="threads that read patches; null: chosen for the provider")
    threads: int | None = Field(description="threads of the models on the CPU; null: all cores")
    mask_device: str
    keep: int | None = Field(description="patches kept at each stage; null: as in the bundle")
    repeats: int = Field(description="timed runs of each measurement after one warm-up; a long measurement runs once")


class ReadFigures(FrozenModel):
    """Reading patches of the finest stage and discarding them."""

    patches: int
    seconds: float
    patches_per_s: float
    threads: int
    stage: str
    patch_px: int
    megapixels_per_s: float = Field(description="pixels of patches, not of decoded tiles")
    repeats_s: _Seconds


class MaskFigures(FrozenModel):
    """Reading the overview and segmenting tissue in it."""

    seconds: float
    overview_s: float = Field(description="reading the slide at the mask's spacing")
    segment_s: float = Field(description="computing the mask from its pixels")
    width: int
    height: int
    tissue_share: float
    repeats_s: _Seconds


class BackboneFigures(FrozenModel):
    """The backbone on patches in memory."""

    patches_per_s: float
    batch: int
    patches: int
    seconds: float
    engine: str = Field(description="name of the execution provider in its library")
    load_s: float = Field(description="loading all graphs of the bundle, once")
    repeats_s: _Seconds


class ModelFigures(FrozenModel):
    """A stage model on a bag of random features."""

    stage: str
    patches: int
    seconds: float
    repeats_s: _Seconds


class PipelineFigures(FrozenModel):
    """Reading and backbone together, on the finest stage's patches."""

    patches: int
    seconds: float
    patches_per_s: float
    backbone_share: float = Field(description="of the seconds")
    backbone_waited_s: float = Field(description="seconds in which the backbone waited for patches")
    readers_waited_s: float | None = Field(
        description="seconds in which readers waited for a free buffer, summed over threads; null: not measured"
    )
    of_slower: float = Field(
        description="throughput as a share of that of the slower one alone (backbone, or reading for this provider)"
    )
    reading_per_s: float | None = Field(
        default=None,
        description="patches per second of reading alone with this provider's readers; null: unknown",
    )
    repeats_s: _Seconds


class StageFigures(FrozenModel):
    """Number of patches that one stage encoded."""

    name: str
    encoded: int


class EndToEnd(FrozenModel):
    """From opening the slide to written results, with the models already loaded."""

    provider: str
    patches: int = Field(description="patches encoded in all stages")
    patches_per_s: float
    seconds: float
    backbone_share: float = Field(description="of the seconds")
    backbone_waited_s: float = Field(description="seconds in which the backbone waited for patches")
    steps_s: dict[str, float] = Field(description="seconds by step; the sum is `seconds`")
    shares: dict[str, float] = Field(description="the same as shares; the sum is 1")
    stages: tuple[StageFigures, ...]
    repeats_s: _Seconds

    @field_validator("steps_s", "shares")
    @classmethod
    def _use_present_step_names(cls, by_step: dict[str, float]) -> dict[str, float]:
        return {_FORMER_STEP_NAMES.get(name, name): value for name, value in by_step.items()}


class StartUp(FrozenModel):
    """A new ``hagmil infer`` from process start to the first patch in the backbone, with an empty compile cache."""

    provider: str
    steps_s: dict[str, float] = Field(description="seconds by step; the sum is `start_up_s`")
    repeats_s: _Seconds


class Memory(FrozenModel):
    """Resident memory of the same process, over its whole run."""

    peak_rss_mb: float
    with_models_mb: float = Field(description="after the models are loaded")
    above_models_mb: float = Field(description="the peak minus `with_models_mb`")


class SweepPoint(FrozenModel):
    """Throughput with one setting."""

    what: Literal["read_threads", "backbone_batch", "backbone_threads", "model_patches"]
    provider: str | None = Field(description="null for reading")
    series: str = Field(description="name of the stage or the backbone")
    value: int = Field(description="threads, patches in a batch, or patches in a bag")
    patches_per_s: float
    repeats_s: _Seconds


class BenchReport(FrozenModel):
    """``report.json``: the time of each step for one slide and one bundle on one machine."""

    format: Literal["hagmil-bench"] = "hagmil-bench"
    format_version: Literal[1] = 1
    hagmil: str = Field(description="version of hagmil that wrote it")
    created: datetime
    command: str
    machine: Machine
    versions: dict[str, str]
    slide: BenchSlide
    bundle: BenchBundle
    settings: Settings
    read: ReadFigures
    mask: MaskFigures
    backbone: dict[str, BackboneFigures] = Field(description="by provider")
    models: dict[str, tuple[ModelFigures, ...]] = Field(description="by provider; coarse to fine")
    pipeline: dict[str, PipelineFigures] = Field(description="by provider")
    end_to_end: EndToEnd = Field(description="with the provider that has the fastest backbone")
    end_to_end_by_provider: dict[str, EndToEnd]
    start_up_s: float
    start_up: StartUp
    peak_rss_mb: float
    memory: Memory
    sweep: tuple[SweepPoint, ...] = ()
    skipped: dict[str, str] = Field(
        default_factory=dict, description="providers that were present but did not start, with the reason"
    )


def bench_schema() -> str:
    """Return the JSON schema of ``report.json``, as published in docs/schemas."""
    return json.dumps(BenchReport.model_json_schema(), indent=2) + "\n"


def read_report(path: Path) -> BenchReport:
    """Read a ``report.json``.

    Args:
        path: the file or its folder.

    Raises:
        UsageError: the file cannot be read, or is not a report of version 1.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        return BenchReport.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f'"{file}" cannot be read: {error.strerror}; pass a report.json of hagmil bench') from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UsageError(f'"{file}" is not a report of hagmil bench (version 1): {where}: {first["msg"]}') from error
