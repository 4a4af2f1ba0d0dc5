"""Time of ``hagmil infer`` from process start to the first patch in the backbone.

    python benchmarks/start_up.py SLIDE... [--size 8192] [--repeats 5] [--out benchmarks/results/start_up.json]

The slides are the given ones and a phantom of ``--size`` pixels (0: none). Every run is a separate process with the
built-in model that ends when ONNX Runtime gets its first batch. There are three states, measured alternately: ``cold``
has an empty numba cache, ``warm`` a filled one, and ``no bytecode`` an empty cache and no compiled Python, as in a
read-only installation that has never run. The disk cache is warm: the first run in each state does not count.

Results are the median and the range of the seconds from process start to that batch, and the median of each step.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATES = ("cold", "warm", "no bytecode")
STEPS = ("interpreter", "command line", "runtime", "ONNX Runtime", "model", "slide", "overview", "mask", "first batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--size", type=int, default=8192, help="side of the phantom in pixels; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start_up.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        slides = [*arguments.slides, *phantoms(arguments.size, Path(temporary))]
        report = {
            "command": "hagmil infer SLIDE, built-in model, provider cpu",
            "cores": len(os.sched_getaffinity(0)),
            "repeats": arguments.repeats,
            "rows": [measure(slide, arguments.repeats) for slide in slides],
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def phantoms(size_px: int, folder: Path) -> list[Path]:
    """Make a phantom of this size; none if the size is 0."""
    if size_px == 0:
        return []
    from hagmil.phantom import PhantomSpec, write_phantom

    path = folder / f"phantom_{size_px}.tif"
    write_phantom(PhantomSpec(seed=5, label="tumour", size_px=size_px), path)
    return [path]


def measure(slide: Path, repeats: int) -> dict[str, Any]:
    """Measure all states alternately, so that other load on the machine affects each of them."""
    runs: dict[str, list[dict[str, float]]] = {state: [] for state in STATES}
    with tempfile.TemporaryDirectory() as warm_cache:
        for state in STATES:
            start_once(slide, state, Path(warm_cache))  # warms the disk cache, and the numba cache of "warm"
        for _ in range(repeats):
            for state in STATES:
                runs[state].append(start_once(slide, state, Path(warm_cache)))
    return {"slide": slide.name, **{state: summary(each) for state, each in runs.items()}}


def start_once(slide: Path, state: str, warm_cache: Path) -> dict[str, float]:
    """Start a process; return the seconds from its start to the end of each step."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {
            **os.environ,
            "NUMBA_CACHE_DIR": str(warm_cache if state == "warm" else folder / "numba"),
            "HAGMIL_START_UP_MARKS": str(folder / "marks.json"),
        }
        if state == "no bytecode":
            environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        command = [sys.executable, str(Path(__file__).resolve()), "infer", str(slide), "--out", str(folder / "out")]
        started = time.monotonic()  # this clock is common to all processes
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not (folder / "marks.json").exists():
            raise SystemExit(f"{' '.join(command)} ended before its first batch:\n{done.stderr}")
        marks: dict[str, float] = json.loads((folder / "marks.json").read_text())
        return {step: at - started for step, at in marks.items()}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return medians over runs of the total and of each step."""
    totals = [run[STEPS[-1]] for run in runs]
    added = {
        step: statistics.median(run[step] - (run[STEPS[index - 1]] if index else 0.0) for run in runs)
        for index, step in enumerate(STEPS)
    }
    return {
        "seconds": round(statistics.median(totals), 3),
        "least": round(min(totals), 3),
        "most": round(max(totals), 3),
        "steps": {step: round(seconds, 3) for step, seconds in added.items()},
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    heads = ("slide", "state", "seconds", "range", *STEPS)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in report["rows"]:
        for state in STATES:
            found = row[state]
            cells = [row["slide"], state, f"{found['seconds']:.2f}", f"{found['least']:.2f} to {found['most']:.2f}"]
            cells += [f"{found['steps'][step]:.2f}" for step in STEPS]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Marks:
    """Times at which the steps of this process ended; written at the first batch."""

    def __init__(self) -> None:
        self.at = {"interpreter": time.monotonic()}

    def done(self, step: str) -> None:
        """Record the end of a step; only the first call counts."""
        self.at.setdefault(step, time.monotonic())

    def after(self, owner: Any, name: str, step: str) -> None:
        """Record each return of ``owner.name`` as the end of a step."""
        function: Callable[..., Any] = getattr(owner, name)

        def recording(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            self.done(step)
            return result

        setattr(owner, name, recording)

    def end(self, *_arguments: Any, **_options: Any) -> None:
        """Record the first batch, write the times, and end the process."""
        self.done(STEPS[-1])
        Path(os.environ["HAGMIL_START_UP_MARKS"]).write_text(json.dumps(self.at))
        os._exit(0)


def driver() -> None:
    """Run the command line and record the end of each step (in the measured process)."""
    marks = Marks()
    import hagmil.cli
    import hagmil.cli.app

    marks.done("command line")
    one_slide = importlib.import_module("hagmil.runtime.inference.one_slide")
    plan = importlib.import_module("hagmil.runtime.patches.plan")
    model = importlib.import_module("hagmil.runtime.inference.loaded_bundle")
    marks.done("runtime")
    onnxruntime = importlib.import_module("onnxruntime")
    marks.done("ONNX Runtime")
    marks.after(model, "load_model", "model")
    marks.after(one_slide, "open_slide", "slide")
    marks.after(plan, "read_overview_and_picture", "overview")
    marks.after(plan, "find_tissue", "mask")
    onnxruntime.InferenceSession.run = marks.end
    onnxruntime.InferenceSession.run_with_iobinding = marks.end
    hagmil.cli.main()


if __name__ == "__main__":
    if "HAGMIL_START_UP_MARKS" in os.environ:
        driver()
    else:
        main()
