"""Start-up time and memory of ``hagmil infer``, in new processes with an empty compile cache."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from hagmil._files import temporary_folder
from hagmil.errors import EnvironmentLacks
from hagmil.runtime.bench.repeats import median_run
from hagmil.runtime.bench.report import Memory, StartUp
from hagmil.runtime.bench.watched_infer import Notes
from hagmil.runtime.inputs import SlideRequest

_TAIL_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class InferCall:
    """Options for a start of ``hagmil infer``.

    Args:
        request: the slide.
        bundle: folder of the bundle.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        batch: patches in a batch of the backbone.
        readers: reader threads.
        threads: threads of the models on the CPU; None for all cores.
        keep: patches kept at each stage; None for those of the bundle.
        mask_device: device of the tissue mask.
    """

    request: SlideRequest
    bundle: Path
    provider: str
    batch: int
    readers: int
    threads: int | None
    keep: int | None
    mask_device: str = "cpu"

    def arguments(self, out: Path) -> list[str]:
        """Return the command line that writes results to ``out``."""
        options = {
            "--model": self.bundle,
            "--out": out,
            "--provider": self.provider,
            "--batch-size": self.batch,
            "--readers": self.readers,
            "--threads": self.threads,
            "--keep": self.keep,
            "--mask-device": self.mask_device,
            "--spacing-um": self.request.spacing_um,
        }
        given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
        return ["infer", *given, "--", str(self.request.path)]


def measure_start_up(call: InferCall, repeats: int) -> tuple[float, StartUp, Memory]:
    """Start ``hagmil infer`` once to warm the disk cache, then ``repeats`` times.

    Args:
        call: the command's options.
        repeats: number of timed starts.

    Returns:
        Seconds from process start to the first patch in the backbone, the same by step, and the memory of the
        process, all from the run with the median start-up time.

    Raises:
        EnvironmentLacks: the process failed.
    """
    _start(call)
    runs = [_start(call) for _ in range(repeats)]
    seconds, (began, notes) = median_run(runs)
    times = (began, notes.interpreter, notes.loading, notes.loaded, notes.first_patch)
    names = ("interpreter", "imports", "models", "slide, mask and first batch")
    steps = {name: times[index + 1] - times[index] for index, name in enumerate(names)}
    memory = Memory(
        peak_rss_mb=notes.peak_rss_mb,
        with_models_mb=notes.with_models_mb,
        above_models_mb=max(0.0, notes.peak_rss_mb - notes.with_models_mb),
    )
    return seconds, StartUp(provider=call.provider, steps_s=steps, repeats_s=tuple(each for each, _ in runs)), memory


def _start(call: InferCall) -> tuple[float, tuple[float, Notes]]:
    """Run the command; return seconds to the first patch, the time of the start, and the notes of the process."""
    with temporary_folder("bench") as folder:
        notes = folder / "notes.json"
        command = [
            sys.executable,
            "-m",
            "hagmil.runtime.bench.watched_infer",
            str(notes),
            *call.arguments(folder / "out"),
        ]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "compiled")}
        began = monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not notes.is_file():
            output = " ".join((done.stderr.strip() or done.stdout).split())
            raise EnvironmentLacks(
                f"hagmil infer, run to measure its start-up, ended with exit code {done.returncode}: "
                f"{output[-_TAIL_CHARACTERS:]}",
                code="start_up_failed",
            )
        found = Notes.model_validate_json(notes.read_bytes())
        return found.first_patch - began, (began, found)
