"""Run the cascade on given slides or on phantoms, to compare the verdicts of an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hagmil._files import temporary_folder
from hagmil.bundle import Bundle, Manifest
from hagmil.errors import SlideError
from hagmil.export.parity.slide_parity import ModelSessions, SlideRecord, SlideRunner, StageRecord
from hagmil.phantom import write_cohort
from hagmil.progress import Progress
from hagmil.runtime.inference.cascade import run_cascade
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import verdict_of
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.patches.plan import lay_out, require_tissue, stage_specs
from hagmil.runtime.slides.open import open_slide

PHANTOM_PX = 2048
MAX_CALIBRATION_SLIDES = 8  # the whole cascade runs on each slide twice
_DEFAULT_PHANTOMS = 4
_SEED = 4242  # differs from the default seeds of training cohorts


def default_phantoms(precision: str, slides: Sequence[str] | None) -> int:
    """Return the default number of phantoms: 4 for fp16 without slides, otherwise 0.

    int8 exports use their calibration slides instead.
    """
    return _DEFAULT_PHANTOMS if precision == "fp16" and not slides else 0


@contextmanager
def open_slide_runner(
    slides: Sequence[str], phantoms: int, *, progress: Progress, calibration: Sequence[SlideRequest] = ()
) -> Iterator[SlideRunner | None]:
    """Prepare the slides on which the verdicts of an export are compared.

    Args:
        slides: files, folders or globs.
        phantoms: number of additional synthetic slides; they are deleted at the end.
        progress: called for each step.
        calibration: calibration slides of an int8 export; the first of them are used if there are neither slides nor
            phantoms.

    Yields:
        The slide runner; None if there are no slides.

    Raises:
        UsageError: a glob or folder contains no slides.
    """
    given = slide_requests(slides) if slides else ()
    own = tuple(calibration)[:MAX_CALIBRATION_SLIDES] if not given and not phantoms else ()
    with temporary_folder("parity") as folder:
        made = _phantoms(folder, phantoms, progress) if phantoms else ()
        what = " and ".join(
            words
            for words, count in (
                (f"{len(given)} given slides", len(given)),
                (f"{len(own)} of the calibration slides", len(own)),
                (f"{phantoms} phantoms of {PHANTOM_PX} px", phantoms),
            )
            if count
        )
        requests = (*given, *own, *made)
        yield CascadeRunner(requests, what, progress) if requests else None


@dataclass(frozen=True, slots=True)
class CascadeRunner:
    """Runs the cascade on slides; implements :class:`hagmil.export.parity.slide_parity.SlideRunner`.

    Args:
        requests: the slides.
        what: description of the slides.
        progress: called after each slide.
    """

    requests: tuple[SlideRequest, ...]
    what: str
    progress: Progress

    def run(self, manifest: Manifest, sessions: ModelSessions, words: str) -> Sequence[SlideRecord]:
        """Run the cascade on every slide."""
        bundle = Bundle(path=Path(), manifest=manifest, sha256="")  # the sessions replace its files
        model = LoadedModel(bundle=bundle, backbone=sessions.backbone, stages=sessions.stages)
        runs: list[SlideRecord] = []
        for request in self.requests:
            self.progress(words, len(runs), len(self.requests))
            runs.append(_run(request, model))
        self.progress(words, len(runs), len(self.requests))
        return runs


def _phantoms(folder: Path, count: int, progress: Progress) -> tuple[SlideRequest, ...]:
    made = write_cohort(
        folder,
        slides=count,
        size_px=PHANTOM_PX,
        seed=_SEED,
        progress=lambda done, total, _name: progress("phantoms", done, total),
    )
    return slide_requests([str(slide.slide_path) for slide in made])


def _run(request: SlideRequest, model: LoadedModel) -> SlideRecord:
    """Run one slide; a slide that cannot be read or has no tissue gives a record with its error code."""
    manifest = model.bundle.manifest
    try:
        with open_slide(request.path, spacing_um=request.spacing_um) as slide:
            layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
            require_tissue(layout)
            outcomes = run_cascade(slide, layout.coords, model, layout.plan, EncodeOptions(), clock=StepClock())
    except SlideError as error:
        return SlideRecord(request.slide_id, None, {}, error.code, ())
    verdict = verdict_of(manifest, outcomes[-1].outputs, outcomes[-2].outputs if len(outcomes) > 1 else None)
    stages = tuple(
        StageRecord(outcome.geometry.name, outcome.coords, outcome.attention, outcome.kept) for outcome in outcomes
    )
    return SlideRecord(request.slide_id, verdict.prediction, verdict.probabilities, None, stages)
