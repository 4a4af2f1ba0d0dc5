"""Slides for the proof of an export: the user's, or phantoms made for it, through the runtime's cascade."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

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
MOST_CALIBRATION_SLIDES = 8  # a slide goes through the whole cascade twice
_DEFAULT_PHANTOMS = 4
_SEED = 4242  # not that of any cohort that somebody trains on without saying so


def default_phantoms(precision: str, slides: Sequence[str] | None) -> int:
    """How many phantoms are made where nobody says: some with half precision, where no slides are given.

    With int8 there are calibration slides, which say more.
    """
    return _DEFAULT_PHANTOMS if precision == "fp16" and not slides else 0


@contextmanager
def open_slide_runner(
    slides: Sequence[str], phantoms: int, *, progress: Progress, calibration: Sequence[SlideRequest] = ()
) -> Iterator[SlideRunner | None]:
    """Make ready what an export's verdicts are compared on.

    Args:
        slides: files, folders or globs.
        phantoms: how many synthetic slides to make beside them; they are removed afterwards.
        progress: told what is being done.
        calibration: slides that int8 was calibrated on; where neither slides nor phantoms are asked for, the first of
            them are compared.

    Yields:
        What runs them; None where there are none.

    Raises:
        UsageError: a glob or folder holds no slide.
    """
    given = slide_requests(slides) if slides else ()
    own = tuple(calibration)[:MOST_CALIBRATION_SLIDES] if not given and not phantoms else ()
    with TemporaryDirectory(prefix="hagmil-parity-") as folder:
        made = _phantoms(Path(folder), phantoms, progress) if phantoms else ()
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
    """Takes slides through the cascade; see :class:`hagmil.export.parity.slide_parity.SlideRunner`.

    Args:
        requests: the slides.
        what: the slides, in words.
        progress: told how many are done.
    """

    requests: tuple[SlideRequest, ...]
    what: str
    progress: Progress

    def run(self, manifest: Manifest, sessions: ModelSessions, words: str) -> Sequence[SlideRecord]:
        """Take every slide through a bundle's cascade."""
        bundle = Bundle(path=Path(), manifest=manifest, sha256="")  # its files are in the sessions
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
    """One slide; what cannot be read or has no tissue ends with its code."""
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
