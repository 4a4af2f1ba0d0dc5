"""How do time, memory and patches read grow with the slide?

    python -m benchmarks.growth --sizes 8192 16384 32768 65536 --out benchmarks/results/growth.json

A bundle with resnet50-trunc and the full-size transformer at each of three stages (random weights: what is measured
does not depend on them) runs over a phantom of each size, in a process of its own. Given for each:

- patches read at each stage, beside what the quadtree says they must be. The number kept is the same for all sizes,
  so that only the coarsest stage, which looks at all tissue, grows with the area;
- seconds by step;
- peak resident memory of the process, the step in which it was, and what of it is above the loaded models;
- beside it the models' own peak, that of a process which does nothing but run the same sessions once each, the backbone
  on a batch and each stage's on a bag of the same size. What is above that is the pipeline's: readers, tiles, batches,
  overview, features, results.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from hagmil.runtime import predict
from hagmil.runtime.inference.encode import default_batch_size
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.memory.heap import trim_heap
from hagmil.spec import BAG, PATCHES

SIZES = (8192, 16_384, 32_768, 65_536)
KEEP = 50
SEED = 5
STEPS = ("tissue", "read", "backbone", "models", "picture", "write", "total")
MEMORY_KEYS = ("peak_rss_mb", "loaded_rss_mb", "above_models_mb", "models_peak_mb", "peak_step")
LIMIT_MB, LIMIT_GROWTH = 600, 0.10
ELSEWHERE = "between steps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--folder", type=Path, help="where phantoms and bundle are kept for another run")
    parser.add_argument("--prepare", action="store_true", help="only make phantoms and bundle")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.json"))
    parser.add_argument("--measure", nargs=3, metavar=("SLIDE", "BUNDLE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs="+", metavar=("BUNDLE", "PATCHES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*(Path(each) for each in arguments.measure))))
        return
    if arguments.alone:
        print(json.dumps(measure_alone(Path(arguments.alone[0]), [int(each) for each in arguments.alone[1:]])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        slides, bundle = prepare(folder, arguments.sizes)
        if arguments.prepare:
            return
        started_on = machine()
        rows = []
        for size, slide in slides.items():
            out = folder / "growth_out" / slide.stem
            row = in_a_process("--measure", str(slide), str(bundle), str(out))
            alone = in_a_process("--alone", str(bundle), *(str(count) for count in row["encoded"]))
            rows.append({"size_px": size, **row, **alone})
            print(rows[-1], file=sys.stderr, flush=True)
    report = {"machine": started_on, "keep": KEEP, "rows": rows, **judged(rows)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def prepare(folder: Path, sizes: list[int]) -> tuple[dict[int, Path], Path]:
    """A phantom of each size and the bundle, made unless they are there."""
    from benchmarks.random_bundle import make_bundle  # torch is not for the measured process
    from hagmil.phantom import PhantomSpec, write_phantom

    slides = {size: folder / f"phantom_{size}.tif" for size in sizes}
    for size, path in slides.items():
        if not path.is_file():
            write_phantom(PhantomSpec(seed=SEED, label="tumour", size_px=size), path)
    bundle = folder / "growth_bundle"
    if not bundle.is_dir():
        make_bundle(bundle, folder / "growth_backbone", KEEP)
    return slides, bundle


def in_a_process(*arguments: str) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(slide: Path, bundle: Path, out: Path) -> dict[str, Any]:
    """Load, and take the slide through the cascade, in this process."""
    model = load_model(bundle)
    loaded_mb = status_mb("VmRSS")
    MemoryClock.peaks.clear()
    predict.StepClock = MemoryClock  # type: ignore[misc]
    (request,) = slide_requests([str(slide)])
    cpu_before = resource.getrusage(resource.RUSAGE_SELF)
    result = predict.predict_one(request, model, out, predict.PredictOptions())
    cpu_after = resource.getrusage(resource.RUSAGE_SELF)
    note_peak(ELSEWHERE)
    if result.status != "ok":
        raise SystemExit(f"{slide}: {result.message}")
    peaks = MemoryClock.peaks
    peak_step = max(peaks, key=lambda step: peaks[step])
    stages = [(stage.candidates, stage.encoded, stage.kept) for stage in result.stages]
    return {
        "encoded": [encoded for _, encoded, _ in stages],
        "quadtree_says": quadtree_says([candidates for candidates, _, _ in stages], KEEP),
        "timing_s": {step: round(seconds, 2) for step, seconds in result.timing_s.items()},
        "cpu_s": round(cpu_after.ru_utime + cpu_after.ru_stime - cpu_before.ru_utime - cpu_before.ru_stime, 1),
        "loaded_rss_mb": round(loaded_mb),
        "peak_rss_mb": round(peaks[peak_step]),
        "above_models_mb": round(peaks[peak_step] - loaded_mb),
        "peak_step": peak_step,
        "peak_mb_by_step": {step: round(peak) for step, peak in peaks.items()},
    }


def measure_alone(bundle: Path, patches: list[int]) -> dict[str, int]:
    """The models' own peak: the backbone on one batch, each stage's model on a bag of so many patches."""
    model = load_model(bundle)
    side, dim = model.bundle.manifest.patch_px, model.bundle.manifest.backbone.features
    batch = np.full((default_batch_size(model.backbone, side), side, side, 3), 200, np.uint8)
    model.backbone.run({PATCHES.name: batch}, last=True)
    for session, count in zip(model.stages, patches, strict=True):
        trim_heap()
        session.run({BAG.name: np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)})
    return {"models_peak_mb": round(status_mb("VmHWM"))}


class MemoryClock(StepClock):
    """A clock that also notes the highest resident memory in each step, over all clocks of the process."""

    peaks: dict[str, float] = {}  # noqa: RUF012 - one for the process, as its memory is

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the block's time and memory under a name."""
        note_peak(ELSEWHERE)
        try:
            with super().step(name):
                yield
        finally:
            note_peak(name)


def note_peak(step: str) -> None:
    """Keep the peak since the last note under a step's name, and let the kernel count from here."""
    MemoryClock.peaks[step] = max(MemoryClock.peaks.get(step, 0.0), status_mb("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")


def status_mb(key: str) -> float:
    """A line of this process's memory status, in MB of 2^20 bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def quadtree_says(candidates: list[int], keep: int) -> list[int]:
    """What each stage must read: all of the coarsest, then four children of each kept patch."""
    said = candidates[:1]
    for _ in candidates[1:]:
        said.append(4 * min(keep, said[-1]))
    return said


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The two limits, and whether they are kept."""
    above = [row["above_models_mb"] for row in rows]
    growth = above[-1] / above[0] - 1
    return {
        "most_above_models_mb": max(above),
        "growth_of_above_models": round(growth, 4),
        "growth_of_peak": round(rows[-1]["peak_rss_mb"] / rows[0]["peak_rss_mb"] - 1, 4),
        "under_limit": max(above) < LIMIT_MB,
        "equal": max(above) <= min(above) * (1 + LIMIT_GROWTH),
    }


def markdown(report: dict[str, Any]) -> str:
    """A line a size, and whether the limits are kept."""
    heads = ["slide", "patches read, coarse to fine", *(f"{step}, s" for step in STEPS)]
    heads += ["peak RSS, MB", "models loaded", "above them", "models' own peak", "peak in"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in report["rows"]:
        patches = " + ".join(str(each) for each in row["encoded"])
        mark = "" if row["encoded"] == row["quadtree_says"] else " (the quadtree says otherwise)"
        cells = [f"{row['size_px']}²", patches + mark]
        cells += [f"{row['timing_s'].get(step, 0.0):.2f}" for step in STEPS]
        cells += [str(row[key]) for key in MEMORY_KEYS]
        lines.append("| " + " | ".join(cells) + " |")
    words = {True: "yes", False: "no"}
    return "\n".join(
        [
            *lines,
            "",
            f"Coarse patches grow with the tissue's area; with keep {report['keep']} the finer stages do not. "
            f"Above the loaded models: at most {report['most_above_models_mb']} MB (under {LIMIT_MB}: "
            f"{words[report['under_limit']]}), {report['growth_of_above_models']:+.1%} from the smallest slide to the "
            f"largest (all within {LIMIT_GROWTH:.0%}: {words[report['equal']]}).",
        ]
    )


if __name__ == "__main__":
    main()
