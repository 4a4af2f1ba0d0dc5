"""Time of a tissue mask: hagmil's kernels and OpenCV, scikit-image and libvips, on the same image.

    pip install opencv-python-headless scikit-image
    python -m benchmarks.masks [--sides 500 2000 6000] [--rounds 3] [--out benchmarks/results/masks.json]
    python -m benchmarks.masks --break-even [--sides 500 1000 2000 4000] [--rounds 5]

The images are overviews of a phantom, with the sizes that slides of 8,000, 32,000 and 100,000 pixels at 0.5 um/px have
at 8 um/px; the largest repeats the middle one. There are two tasks, each with a fixed threshold and with Otsu's:

``filters``  saturation, median of 7 x 7, threshold, closing: the steps of CLAM before it finds contours, implemented
             here from that description. Each library treats edges and rounds the saturation in its own way.
``mask``     the complete definition of hagmil: brightness check, saturation, median of 5 x 5, threshold, closing,
             removal of small objects and filling of small holes. OpenCV is compared to show what a library would gain.

Each implementation runs in its own process, in turn, ``--rounds`` times. ``load`` is the time to import its library,
``first`` its first call, ``later`` the median of the calls after it, ``CPU`` the CPU time of all threads in such a
call, which depends little on other work on the machine, ``memory`` the peak that the calls add to the process.
``numba, cold`` starts with an empty compile cache.

``--break-even`` compares the NumPy and numba kernels only, in alternating processes, for a run over many slides: the
time that numba costs once (import, loading or compiling the code, first call) over the time that it saves per slide.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.tissue.kernels.protocol import MaskKernels
from hagmil.runtime.tissue.segment import otsu_threshold, require_brightfield, segment
from hagmil.tissue_parameters import TissueParameters

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
THRESHOLD = 8
MEDIAN_PX, CLOSING_PX = 7, 5
SPACING_UM = 8.0
MIN_OBJECT_PX, MIN_HOLE_PX = 157, 625  # the defaults, 10,000 and 40,000 um2, at that spacing
METHODS = ("fixed", "otsu")
TASKS = ("filters", "mask")
CALLS_PX = 12_000_000
"""Pixels that a process processes after its first call: small images are repeated more often, at most nine times."""


@dataclass(frozen=True, slots=True)
class MaskImplementation:
    """One implementation of masks.

    Args:
        name: name in the report.
        maker: name of the function in this file that imports the library and returns the mask function.
        tasks: tasks that the implementation supports.
        largest_px: larger images are left out.
        cold: whether the compile cache is empty at the start.
    """

    name: str
    maker: str
    tasks: tuple[str, ...] = TASKS
    largest_px: int = 1 << 40
    cold: bool = False


IMPLEMENTATIONS = (
    MaskImplementation("OpenCV", "opencv"),
    MaskImplementation("scikit-image", "scikit_image", tasks=("filters",), largest_px=5_000_000),
    MaskImplementation("libvips", "libvips", tasks=("filters",)),
    MaskImplementation("ours, plain", "plain"),
    MaskImplementation("ours, numba, one core", "compiled_one_core"),
    MaskImplementation("ours, numba, all cores", "compiled"),
    MaskImplementation("ours, numba, cold", "compiled", tasks=("mask",), cold=True),
)


NUMPY, WARM, COLD = IMPLEMENTATIONS[3], IMPLEMENTATIONS[5], IMPLEMENTATIONS[6]
BREAK_EVEN = (NUMPY, WARM, COLD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[500, 2000, 6000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/masks.json"))
    parser.add_argument("--break-even", action="store_true", help="print after how many slides numba saves time")
    parser.add_argument("--measure", nargs=4, metavar=("MAKER", "TASK", "METHOD", "IMAGE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    if arguments.break_even:
        rows = compare(arguments.sides, arguments.rounds, BREAK_EVEN, tasks=("mask",))
        print(break_even_table(rows))
        return
    require_peers()
    report = {
        "cores": len(os.sched_getaffinity(0)),
        "rounds": arguments.rounds,
        "versions": {name: version(name) for name in ("numpy", "numba", "opencv-python-headless", "scikit-image")},
        "rows": compare(arguments.sides, arguments.rounds, IMPLEMENTATIONS),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def require_peers() -> None:
    """Raise an error with the install command if a compared library is missing."""
    for module, package in (("cv2", "opencv-python-headless"), ("skimage", "scikit-image")):
        if importlib.util.find_spec(module) is None:
            raise SystemExit(f"this comparison needs {package}: pip install {package}")


def version(package: str) -> str:
    """Return the installed version of a package."""
    return importlib.metadata.version(package)


def compare(
    sides: list[int], rounds: int, implementations: Sequence[MaskImplementation], tasks: Sequence[str] = TASKS
) -> list[dict[str, Any]]:
    """Run all implementations on images of all sides, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for side in sides:
            image = folder / f"{side}.npy"
            np.save(image, overview_of(side, folder))
            for task in tasks:
                for method in METHODS:
                    able = [each for each in implementations if task in each.tasks and side * side <= each.largest_px]
                    runs: dict[str, list[dict[str, Any]]] = {each.name: [] for each in able}
                    for _ in range(rounds):
                        for each in able:
                            runs[each.name].append(start(each, task, method, image, folder))
                    for name, found in runs.items():
                        rows.append({"side_px": side, "task": task, "method": method, "name": name, **summary(found)})
                        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def overview_of(side_px: int, folder: Path) -> Image:
    """Make an image of tissue and glass, uint8 (side, side, 3)."""
    from hagmil.phantom import PhantomSpec, write_phantom  # imports numba, whose import time is measured elsewhere
    from hagmil.runtime.slides.open import open_slide
    from hagmil.runtime.slides.overview import read_overview

    path = folder / "phantom.tif"
    if not path.exists():
        write_phantom(PhantomSpec(seed=5, label="tumour", size_px=8192), path)
    with open_slide(path) as slide:
        pixels = read_overview(slide, 8.0 if side_px <= 512 else 2.0).pixels
    times = -(-side_px // len(pixels))
    return np.ascontiguousarray(np.tile(pixels, (times, times, 1))[:side_px, :side_px])


def start(implementation: MaskImplementation, task: str, method: str, image: Path, folder: Path) -> dict[str, Any]:
    """Measure one implementation in a separate process."""
    with tempfile.TemporaryDirectory() as empty:
        cache = empty if implementation.cold else str(folder / "numba")
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
        command += [implementation.maker, task, method, str(image)]
        marker = folder / f"{task}_{method}.filled"
        if implementation.maker.startswith("compiled") and not implementation.cold and not marker.exists():
            subprocess.run(command, env=environment, capture_output=True, check=True)  # fills the cache
            marker.touch()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(maker: str, task: str, method: str, image: str) -> dict[str, Any]:
    """Time the load, the first call and later calls in this process."""
    rgb: Image = np.load(image)
    clocks = time.perf_counter, time.process_time
    started = [clock() for clock in clocks]
    make: Callable[[Image], Mask] = globals()[maker](task, method)
    load_s, load_cpu_s = (clock() - start for clock, start in zip(clocks, started, strict=True))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before_kb = status_kb("VmRSS")
    seconds, cpu_seconds = [], []
    for _ in range(1 + max(2, min(9, CALLS_PX // (rgb.shape[0] * rgb.shape[1])))):
        started = [clock() for clock in clocks]
        mask = make(rgb)
        seconds.append(time.perf_counter() - started[0])
        cpu_seconds.append(time.process_time() - started[1])
    return {
        "load_s": load_s,
        "first_s": seconds[0],
        "later_s": seconds[1:],
        "once_cpu_s": load_cpu_s + cpu_seconds[0],
        "cpu_s": cpu_seconds[1:],
        "memory_mb": (status_kb("VmHWM") - before_kb) / 1024,
        "tissue": float(mask.mean()),
    }


def status_kb(key: str) -> int:
    """Read a value of the memory status of this process, in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over processes, and the range of later calls."""
    later = [seconds for run in runs for seconds in run["later_s"]]
    return {
        "load_s": round(statistics.median(run["load_s"] for run in runs), 4),
        "first_s": round(statistics.median(run["first_s"] for run in runs), 4),
        "later_s": round(statistics.median(later), 5),
        "later_least_s": round(min(later), 5),
        "later_most_s": round(max(later), 5),
        "once_cpu_s": round(statistics.median(run["once_cpu_s"] for run in runs), 4),
        "cpu_s": round(statistics.median(seconds for run in runs for seconds in run["cpu_s"]), 5),
        "cpu_by_round_s": [round(statistics.median(run["cpu_s"]), 5) for run in runs],
        "later_by_round_s": [round(statistics.median(run["later_s"]), 5) for run in runs],
        "memory_mb": round(statistics.median(run["memory_mb"] for run in runs)),
        "tissue": round(runs[0]["tissue"], 4),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return a table for each task and method."""
    blocks = []
    for task in TASKS:
        for method in METHODS:
            lines = [f"**{task}, {method} threshold** (milliseconds)", ""]
            heads = (
                "image",
                "implementation",
                "load",
                "first",
                "later",
                "range of later",
                "CPU",
                "memory, MB",
                "tissue",
            )
            lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
            for row in report["rows"]:
                if (row["task"], row["method"]) == (task, method):
                    times = [f"{1000 * row[key]:.1f}" for key in ("load_s", "first_s", "later_s")]
                    span = f"{1000 * row['later_least_s']:.1f} to {1000 * row['later_most_s']:.1f}"
                    cells = [f"{row['side_px']}²", row["name"], *times, span, f"{1000 * row['cpu_s']:.1f}"]
                    lines.append("| " + " | ".join([*cells, str(row["memory_mb"]), f"{row['tissue']:.3f}"]) + " |")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def break_even_table(rows: list[dict[str, Any]]) -> str:
    """Return a table of the cost and saving of numba over NumPy, and the slides after which it saves time."""
    found = {(row["side_px"], row["method"], row["name"]): row for row in rows}
    heads = ("image", "threshold", "cache", "clock", "cost once, s", "saved per slide, ms", "by round, ms", "slides")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (side_px, method, name), row in found.items():
        if name == NUMPY.name:
            continue
        numpy_row, warm = found[side_px, method, NUMPY.name], found[side_px, method, WARM.name]
        for clock, key in (("wall", "later"), ("CPU", "cpu")):
            cost_s = once_s(row, clock) - once_s(numpy_row, clock)
            saved = [
                one - other
                for one, other in zip(numpy_row[f"{key}_by_round_s"], warm[f"{key}_by_round_s"], strict=True)
            ]
            saved_s = statistics.median(saved)
            slides = str(math.ceil(cost_s / saved_s)) if saved_s > 0 else "never"
            span = f"{1000 * min(saved):.1f} to {1000 * max(saved):.1f}"
            cells = [f"{side_px}²", method, "empty" if name == COLD.name else "warm", clock, f"{cost_s:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{1000 * saved_s:.1f}", span, slides]) + " |")
    return "\n".join(lines)


def once_s(row: dict[str, Any], clock: str) -> float:
    """Seconds that an implementation takes once: load and first call, less a later call."""
    if clock == "CPU":
        return float(row["once_cpu_s"] - row["cpu_s"])
    return float(row["load_s"] + row["first_s"] - row["later_s"])


def opencv(task: str, method: str) -> Callable[[Image], Mask]:
    """Steps of CLAM in OpenCV; for ``mask`` with the sizes of hagmil, and objects and holes by connected components."""
    cv2 = importlib.import_module("cv2")
    median_px = MEDIAN_PX if task == "filters" else 5
    square = np.ones((CLOSING_PX, CLOSING_PX), np.uint8)
    kind = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if method == "otsu" else 0)

    def _make(rgb: Image) -> Mask:
        saturation = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[:, :, 1]
        _, above = cv2.threshold(cv2.medianBlur(saturation, median_px), THRESHOLD, 1, kind)
        closed = cv2.morphologyEx(above, cv2.MORPH_CLOSE, square)
        if task == "mask":
            red, green, blue = cv2.split(rgb)
            brightest = cv2.max(cv2.max(red, green), blue)
            counts = cv2.calcHist([brightest], [0], None, [256], [0, 256])
            require_brightfield(counts.reshape(-1).astype(np.int64), "overview")  # (256, 1) -> (256,)
            closed = large(closed, MIN_OBJECT_PX, 8)
            closed |= 1 - (closed | large(1 - closed, MIN_HOLE_PX, 4))
        return closed.astype(np.bool_)  # type: ignore[no-any-return]

    def large(mask: Image, least_px: int, connectivity: int) -> Image:
        _, labels, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
        keep = found[:, cv2.CC_STAT_AREA] >= least_px
        keep[0] = False
        objects: Image = keep.astype(np.uint8)[labels]
        return objects

    return _make


def scikit_image(_task: str, method: str) -> Callable[[Image], Mask]:
    """Filters in scikit-image."""
    rgb2hsv = importlib.import_module("skimage.color").rgb2hsv
    filters = importlib.import_module("skimage.filters")
    closing = importlib.import_module("skimage.morphology").closing

    def _make(rgb: Image) -> Mask:
        saturation = np.rint(rgb2hsv(rgb)[..., 1] * 255).astype(np.uint8)
        smooth = filters.rank.median(saturation, np.ones((MEDIAN_PX, MEDIAN_PX), np.uint8))
        threshold = filters.threshold_otsu(smooth) if method == "otsu" else THRESHOLD
        closed: Mask = closing(smooth > threshold, np.ones((CLOSING_PX, CLOSING_PX), np.bool_))
        return closed

    return _make


def libvips(_task: str, method: str) -> Callable[[Image], Mask]:
    """Filters in libvips, on all cores."""
    pyvips = importlib.import_module("pyvips")

    def _make(rgb: Image) -> Mask:
        image = pyvips.Image.new_from_array(rgb, interpretation="srgb")
        smooth = image.colourspace("hsv")[1].rank(MEDIAN_PX, MEDIAN_PX, MEDIAN_PX**2 // 2)
        threshold = THRESHOLD
        if method == "otsu":
            smooth = smooth.copy_memory()
            threshold = otsu_threshold(smooth.hist_find().numpy().reshape(-1).astype(np.int64))
        above = smooth > threshold
        last = CLOSING_PX**2 - 1
        closed = above.rank(CLOSING_PX, CLOSING_PX, last).rank(CLOSING_PX, CLOSING_PX, 0)
        return closed.numpy() > 0  # type: ignore[no-any-return]

    return _make


def plain(task: str, method: str) -> Callable[[Image], Mask]:
    """NumPy kernels of hagmil."""
    from hagmil.runtime.tissue.kernels.reference import ReferenceKernels

    return ours(ReferenceKernels(), task, method)


def compiled(task: str, method: str) -> Callable[[Image], Mask]:
    """numba kernels of hagmil."""
    from hagmil.runtime.tissue.kernels.numba_cpu import NumbaKernels

    return ours(NumbaKernels(), task, method)


def compiled_one_core(task: str, method: str) -> Callable[[Image], Mask]:
    """numba kernels of hagmil, on one thread."""
    from hagmil.runtime.tissue.kernels.numba_cpu import NumbaKernels

    return ours(NumbaKernels(threads=1), task, method)


def ours(kernels: MaskKernels, task: str, method: Any) -> Callable[[Image], Mask]:
    """Steps of hagmil with the given kernels."""
    parameters = TissueParameters(method=method, threshold=THRESHOLD)

    def _filters(rgb: Image) -> Mask:
        saturation = kernels.saturation(rgb)
        if method == "fixed":
            return kernels.close(kernels.median_above(saturation, MEDIAN_PX, THRESHOLD), CLOSING_PX)
        smooth = kernels.median(saturation, MEDIAN_PX)
        return kernels.close(smooth > otsu_threshold(kernels.histogram(smooth)), CLOSING_PX)

    def _mask(rgb: Image) -> Mask:
        require_brightfield(kernels.brightness(rgb), "overview")
        return segment(kernels.saturation(rgb), SPACING_UM, parameters, kernels)[0]

    return _filters if task == "filters" else _mask


if __name__ == "__main__":
    main()
