"""``report.json``: what was measured, on what, and how."""

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
    """What the figures were taken on."""

    system: str
    cpu: str
    cores: int = Field(ge=1, description="that this process may use")
    memory_gb: float | None = Field(description="in all; null where the system does not say")
    gpus: tuple[str, ...] = ()
    tile_kernel: str | None = Field(default=None, description="what read JPEG tiles; null in reports of old")


class BenchSlide(FrozenModel):
    """The slide that was read."""

    name: str
    phantom: bool = Field(description="whether it was made for this report")
    sha256: str
    bytes: int
    vendor: str
    width: int = Field(description="level-0 pixels")
    height: int = Field(description="level-0 pixels")
    spacing_um: float = Field(description="micrometres per level-0 pixel")
    spacing_source: str | None
    levels: int


class BenchBundle(FrozenModel):
    """The bundle that was run."""

    name: str
    builtin: bool
    sha256: str = Field(description="digest of its manifest, which names every weight's digest")
    kind: str
    backbone: str
    features: int
    precision: str
    patch_px: int
    stages_um: dict[str, float] = Field(description="spacing of every stage, coarse to fine")


class Settings(FrozenModel):
    """What was asked for."""

    batch: int | None = Field(description="patches given to the backbone at once; null: what suits the provider")
    readers: int | None = Field(description="threads that read patches; null: what suits the provider")
    threads: int | None = Field(description="threads of the models on the CPU; null: as many as cores")
    mask_device: str
    keep: int | None = Field(description="patches kept a stage, where the bundle's own were overridden")
    repeats: int = Field(description="of each measurement, after a warm-up; a long one is taken once, and says so")


class ReadFigures(FrozenModel):
    """Reading patches of the finest stage, with nobody who uses them."""

    patches: int
    seconds: float
    patches_per_s: float
    threads: int
    stage: str
    patch_px: int
    megapixels_per_s: float = Field(description="of patches, not of decoded tiles")
    repeats_s: _Seconds


class MaskFigures(FrozenModel):
    """Reading the overview and finding tissue in it."""

    seconds: float
    overview_s: float = Field(description="reading the slide at the mask's spacing")
    segment_s: float = Field(description="from its pixels to the mask")
    width: int
    height: int
    tissue_share: float
    repeats_s: _Seconds


class BackboneFigures(FrozenModel):
    """The backbone on patches that lie in memory."""

    patches_per_s: float
    batch: int
    patches: int
    seconds: float
    engine: str = Field(description="what runs the graph, as its library names it")
    load_s: float = Field(description="opening all graphs of the bundle, once")
    repeats_s: _Seconds


class ModelFigures(FrozenModel):
    """A stage's model on a bag of random features."""

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
    backbone_waited_s: float = Field(description="the backbone waited for patches")
    readers_waited_s: float | None = Field(
        description="readers waited for a free buffer, summed over threads; null: not measured"
    )
    of_slower: float = Field(
        description="throughput as a share of the slower alone: the backbone, or reading as this provider has it read"
    )
    reading_per_s: float | None = Field(
        default=None, description="patches a second of reading alone as this provider has it read; null: not recorded"
    )
    repeats_s: _Seconds


class StageFigures(FrozenModel):
    """What one stage of the run encoded."""

    name: str
    encoded: int


class EndToEnd(FrozenModel):
    """From opening the slide to written results, the models being loaded."""

    provider: str
    patches: int = Field(description="that the backbone saw, over all stages")
    patches_per_s: float
    seconds: float
    backbone_share: float = Field(description="of the seconds")
    backbone_waited_s: float = Field(description="the backbone waited for patches")
    steps_s: dict[str, float] = Field(description="seconds by step; they add up to `seconds`")
    shares: dict[str, float] = Field(description="the same as shares; they add up to 1")
    stages: tuple[StageFigures, ...]
    repeats_s: _Seconds

    @field_validator("steps_s", "shares")
    @classmethod
    def _use_present_step_names(cls, by_step: dict[str, float]) -> dict[str, float]:
        return {_FORMER_STEP_NAMES.get(name, name): value for name, value in by_step.items()}


class StartUp(FrozenModel):
    """A fresh ``hagmil infer``, from process start to the first patch in the backbone; compile cache empty."""

    provider: str
    steps_s: dict[str, float] = Field(description="they add up to `start_up_s`")
    repeats_s: _Seconds


class Memory(FrozenModel):
    """Resident memory of the same process, over its whole run."""

    peak_rss_mb: float
    with_models_mb: float = Field(description="when the models had been loaded")
    above_models_mb: float = Field(description="the peak less that")


class SweepPoint(FrozenModel):
    """One setting tried."""

    what: Literal["read_threads", "backbone_batch", "backbone_threads", "model_patches"]
    provider: str | None = Field(description="null for reading")
    series: str = Field(description="what was run: the stage's or the backbone's name")
    value: int = Field(description="threads, patches a batch, or patches of a bag")
    patches_per_s: float
    repeats_s: _Seconds


class BenchReport(FrozenModel):
    """``report.json``: where the time of one slide and one bundle goes on one machine."""

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
    end_to_end: EndToEnd = Field(description="with the provider whose backbone is fastest")
    end_to_end_by_provider: dict[str, EndToEnd]
    start_up_s: float
    start_up: StartUp
    peak_rss_mb: float
    memory: Memory
    sweep: tuple[SweepPoint, ...] = ()
    skipped: dict[str, str] = Field(
        default_factory=dict, description="providers that were there but did not start, and why"
    )


def bench_schema() -> str:
    """The JSON schema of ``report.json``, as published in docs/schemas."""
    return json.dumps(BenchReport.model_json_schema(), indent=2) + "\n"


def read_report(path: Path) -> BenchReport:
    """Read a ``report.json`` back.

    Args:
        path: the file, or the folder that it lies in.

    Raises:
        UsageError: it is not there, or is no report of this version.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        return BenchReport.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f'"{file}" cannot be read: {error.strerror}; give a report.json of hagmil bench') from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UsageError(f'"{file}" is no report of hagmil bench (version 1): {where}: {first["msg"]}') from error
