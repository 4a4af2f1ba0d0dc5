"""Growth of time, memory and patches read with the size of the slide.

    python -m benchmarks.growth --sizes 8192 16384 32768 65536 --out benchmarks/results/growth.json

A bundle with resnet50-trunc and the transformer of full size at each of three stages runs on a phantom of each size, in
a separate process. The weights are random, as the measurements do not depend on them. Results for each size:

- patches read at each stage, and the number expected from the quadtree. The number of kept patches is the same for all
  sizes, so only the coarsest stage, which reads all tissue, grows with the area;
- seconds by step;
- peak resident memory of the process, the step in which it occurred, and its difference to that of the loaded models;
- the peak of the models alone, from a process that only runs the same sessions once each, the backbone on a batch and
  each stage model on a bag of the same size. The rest belongs to the pipeline: readers, tiles, batches, overview,
  features, results.
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
    parser.add_argument("--folder", type=Path, help="folder that keeps phantoms and bundle for later runs")
    parser.add_argument("--prepare", action="store_true", help="make phantoms and bundle, and stop")
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
    report = {"machine": started_on, "keep": KEEP, "rows": rows, **check_limits(rows)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def prepare(folder: Path, sizes: list[int]) -> tuple[dict[int, Path], Path]:
    """Return a phantom of each size and the bundle, made if they do not exist."""
    from benchmarks.random_bundle import make_bundle  # keeps torch out of the measured process
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
    """Run one measurement in a separate process."""
    command = [sys.executable, "-m", "benchmarks.growth", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(slide: Path, bundle: Path, out: Path) -> dict[str, Any]:
    """Load the bundle and run the cascade on the slide, in this process."""
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
        "expected_patches": expected_patches([candidates for candidates, _, _ in stages], KEEP),
        "timing_s": {step: round(seconds, 2) for step, seconds in result.timing_s.items()},
        "cpu_s": round(cpu_after.ru_utime + cpu_after.ru_stime - cpu_before.ru_utime - cpu_before.ru_stime, 1),
        "loaded_rss_mb": round(loaded_mb),
        "peak_rss_mb": round(peaks[peak_step]),
        "above_models_mb": round(peaks[peak_step] - loaded_mb),
        "peak_step": peak_step,
        "peak_mb_by_step": {step: round(peak) for step, peak in peaks.items()},
    }


def measure_alone(bundle: Path, patches: list[int]) -> dict[str, int]:
    """Measure the peak of the models alone: the backbone on one batch, each stage model on a bag of the given size."""
    model = load_model(bundle)
    side, dim = model.bundle.manifest.patch_px, model.bundle.manifest.backbone.features
    batch = np.full((default_batch_size(model.backbone, side), side, side, 3), 200, np.uint8)
    model.backbone.run({PATCHES.name: batch}, last=True)
    for session, count in zip(model.stages, patches, strict=True):
        trim_heap()
        session.run({BAG.name: np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)})
    return {"models_peak_mb": round(status_mb("VmHWM"))}


class MemoryClock(StepClock):
    """A clock that also records the peak resident memory in each step, over all clocks of the process."""

    peaks: dict[str, float] = {}  # noqa: RUF012 - shared, as the memory is that of the process

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record time and memory of the block under a name."""
        note_peak(ELSEWHERE)
        try:
            with super().step(name):
                yield
        finally:
            note_peak(name)


def note_peak(step: str) -> None:
    """Record the peak since the last call under the name of a step, and reset it."""
    MemoryClock.peaks[step] = max(MemoryClock.peaks.get(step, 0.0), status_mb("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")


def status_mb(key: str) -> float:
    """Return a value of this process's memory status in units of 2^20 bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def expected_patches(candidates: list[int], keep: int) -> list[int]:
    """Return the patches each stage must read: all of the coarsest, then four children of each kept patch."""
    expected = candidates[:1]
    for _ in candidates[1:]:
        expected.append(4 * min(keep, expected[-1]))
    return expected


def check_limits(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the memory above the loaded models with the two limits."""
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
    """Return a table with a row for each size, and the comparison with the limits."""
    heads = ["slide", "patches read, coarse to fine", *(f"{step}, s" for step in STEPS)]
    heads += ["peak RSS, MB", "models loaded", "above them", "peak of models alone", "step of peak"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in report["rows"]:
        patches = " + ".join(str(each) for each in row["encoded"])
        mark = "" if row["encoded"] == row["expected_patches"] else " (not as expected)"
        cells = [f"{row['size_px']}²", patches + mark]
        cells += [f"{row['timing_s'].get(step, 0.0):.2f}" for step in STEPS]
        cells += [str(row[key]) for key in MEMORY_KEYS]
        lines.append("| " + " | ".join(cells) + " |")
    words = {True: "yes", False: "no"}
    return "\n".join(
        [
            *lines,
            "",
            f"The number of coarse patches grows with the area of tissue; with keep {report['keep']}, that of the "
            f"finer stages is constant. Memory above the loaded models: at most {report['most_above_models_mb']} MB "
            f"(below {LIMIT_MB} MB: {words[report['under_limit']]}), {report['growth_of_above_models']:+.1%} from the "
            f"smallest to the largest slide (all within {LIMIT_GROWTH:.0%}: {words[report['equal']]}).",
        ]
    )


if __name__ == "__main__":
    main()
