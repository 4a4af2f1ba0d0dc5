"""CPU seconds that a slide costs beside reading patches and running models.

    python -m benchmarks.fixed_cost --before DIR [--repeats 5] [--out benchmarks/results/fixed_cost.json]

There are three slides: CMU-1-Small-Region of the OpenSlide test data, and two pyramids that repeat its pixels. Each is
predicted by a demonstration model (that of the earlier version) in a warm process. Features are not computed: each
patch gets numbers made from its coordinates, so that no decoding or encoding disturbs the measurement. Only CPU seconds
of the whole process count, and those of the cascade (reading, backbone, stage models) are subtracted.

``--before`` names the source tree of another version, for example a git worktree of an earlier commit with the compiled
tile kernel. Both versions run alternately, each in a process of its own, and their files are compared: pixels of the
pictures, arrays of attention, and all fields of the texts except for times.

Results are the median of the CPU milliseconds of each step over all repeats.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

SOURCE = Path(__file__).parents[1] / "tests" / "data" / "slides" / "CMU-1-Small-Region.svs"
PYRAMIDS_PX = ((8_192, 11_264), (32_768, 33_792))
SPACING_UM = 0.499
CASCADE = "cascade"
_RUNTIME = "hagmil.runtime."
STEPS: dict[str, tuple[tuple[str, str], ...]] = {
    "open": (("inference.one_slide", "open_slide"),),
    "digest": (("slides.slide_files", "_digest"),),
    "overview": (("patches.plan", "read_overview"), ("patches.plan", "read_overview_and_picture")),
    "mask": (("patches.plan", "find_tissue"),),
    "picture": (("inference.one_slide", "_thumbnail"), ("inference.one_slide", "picture_of")),
    "draw": (("results.slide_folder", "draw_heatmap"), ("results.slide_folder", "draw_class_heatmaps")),
    "write": (
        ("results.slide_folder", "write_attention"),
        ("results.slide_folder", "write_regions"),
        ("predict", "write_result"),
    ),
    CASCADE: (("inference.one_slide", "run_cascade"),),
}
"""The functions that make up each step, as modules of ``hagmil.runtime`` and names in them. Functions that a version
lacks are left out, and their time counts as that of the caller, or as ``rest``."""
DIFFERING = {"timing_s", "time_utc", "versions"}
"""Fields of result.json that two runs do not share."""
COLUMNS = (*(step for step in STEPS if step != CASCADE), "rest", "total")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="source tree of another version, measured in turn with this one")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each version")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each slide in each process, after a warm-up")
    parser.add_argument("--folder", type=Path, help="folder that keeps the slides for later runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fixed_cost.json"))
    arguments = parser.parse_args()
    from benchmarks.machine import machine

    trees = {"after": Path(__file__).parents[1]}
    if arguments.before is not None:
        trees = {"before": arguments.before, **trees}
    bundle = next(iter(trees.values())) / "hagmil" / "demo_bundle"
    with tempfile.TemporaryDirectory() as temporary:
        slides = make_slides(arguments.folder or Path(temporary))
        runs = [
            {
                name: measure_in(tree, bundle, slides, arguments.repeats, Path(temporary) / name)
                for name, tree in trees.items()
            }
            for _ in range(arguments.rounds)
        ]
        for slide in slides:
            require_equal(*(Path(temporary) / name / slide.stem for name in trees))
    report = {
        "machine": machine(),
        "command": "predict_one, demonstration model, provider cpu, in a warm process",
        "repeats": arguments.rounds * arguments.repeats,
        "rows": [
            {"slide": slide.stem, "version": name, "cpu_ms": medians([run[name][slide.stem] for run in runs])}
            for slide in slides
            for name in trees
        ],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def make_slides(folder: Path) -> list[Path]:
    """Make the slides, unless they exist.

    Args:
        folder: folder of the slides.

    Returns:
        Their paths, smallest first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    small = folder / SOURCE.name
    small.write_bytes(SOURCE.read_bytes())
    paths = [small]
    for width, height in PYRAMIDS_PX:
        paths.append(folder / f"pyramid_{width}.tif")
        if not paths[-1].is_file():
            write_pyramid(paths[-1], width, height)
    return paths


def write_pyramid(path: Path, width: int, height: int) -> None:
    """Write a pyramid of JPEG tiles that repeats the source.

    Args:
        path: the file to write.
        width: width in pixels.
        height: height in pixels.
    """
    import pyvips

    region = pyvips.Image.tiffload(str(SOURCE), page=0).copy_memory()
    repeated = region.replicate(-(-width // region.width), -(-height // region.height)).crop(0, 0, width, height)
    repeated.copy(xres=1000 / SPACING_UM, yres=1000 / SPACING_UM).tiffsave(
        str(path),
        tile=True,
        tile_width=256,
        tile_height=256,
        pyramid=True,
        compression="jpeg",
        Q=80,
        bigtiff=True,
    )


def measure_in(
    tree: Path, bundle: Path, slides: list[Path], repeats: int, out: Path
) -> dict[str, list[dict[str, float]]]:
    """Measure one version in a process of its own.

    Args:
        tree: its source tree.
        bundle: the bundle of all versions.
        slides: the slides.
        repeats: runs of each slide.
        out: folder for the results of the last run.

    Returns:
        CPU milliseconds by step, for each run of each slide.
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(bundle), str(repeats), str(out), *map(str, slides)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "HAGMIL_FIXED_COST": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tree)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, list[dict[str, float]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(runs: list[list[dict[str, float]]]) -> dict[str, float]:
    """Return the median of each step over all runs of all processes."""
    every = [run for runs_of_process in runs for run in runs_of_process]
    return {step: round(statistics.median(run[step] for run in every), 2) for step in COLUMNS}


def require_equal(*folders: Path) -> None:
    """Require that the result folders of all versions hold the same pixels, numbers and texts, except for times.

    Fields of ``result.json`` that only one version has are not compared.

    Raises:
        SystemExit: two folders differ.
    """
    first = folders[0]
    for other in folders[1:]:
        names = sorted(path.name for path in first.iterdir())
        if names != sorted(path.name for path in other.iterdir()):
            raise SystemExit(f"{first} and {other} hold other files")
        for name in names:
            if not same_content(first / name, other / name):
                raise SystemExit(f"{first / name} and {other / name} differ")


def same_content(path: Path, other: Path) -> bool:
    """Return whether two result files hold the same pixels, numbers and texts, except for times and versions."""
    import h5py
    import numpy as np
    from PIL import Image

    if path.suffix == ".png":
        with Image.open(path) as picture, Image.open(other) as other_picture:
            return picture.mode == other_picture.mode and np.array_equal(np.asarray(picture), np.asarray(other_picture))
    if path.suffix == ".h5":
        with h5py.File(path) as file, h5py.File(other) as other_file:
            return tree_of(file) == tree_of(other_file)
    first, second = (json.loads(each.read_text()) for each in (path, other))
    return all(first[key] == second[key] for key in (first.keys() & second.keys()) - DIFFERING)


def tree_of(group: Any) -> list[tuple[Any, ...]]:
    """Return name, attributes, type, shape and values of everything in a group of an HDF5 file, in its order."""
    found: list[tuple[Any, ...]] = []
    for name, item in group.items():
        attributes = [(key, repr(value)) for key, value in item.attrs.items()]
        if hasattr(item, "items"):
            found.append((name, attributes, tree_of(item)))
        else:
            found.append((name, attributes, str(item.dtype), item.shape, item[...].tobytes()))
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a table, with the share that is left where there are two versions."""
    lines = ["| " + " | ".join(("slide", "version", *COLUMNS)) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    before: dict[str, float] = {}
    for row in report["rows"]:
        cells = [row["slide"], row["version"], *(f"{row['cpu_ms'][step]:.1f}" for step in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
        if row["version"] == "before":
            before = row["cpu_ms"]
        elif before:
            shares = (f"{row['cpu_ms'][step] / before[step]:.2f}" if before[step] else "" for step in COLUMNS)
            lines.append("| " + " | ".join((row["slide"], "ratio", *shares)) + " |")
    return "\n".join(lines)


class CpuSteps:
    """CPU seconds of this process by step. Time in a step within another step counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a block."""
        outside, self._inside, start = self._inside, 0.0, process_time()
        try:
            yield
        finally:
            spent = process_time() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inside
            self._inside = outside + spent

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Measure every call of ``owner.attribute`` as a step."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def measured(*arguments: Any, **options: Any) -> Any:
            with self.step(name):
                return function(*arguments, **options)

        setattr(owner, attribute, measured)


def worker(bundle: Path, repeats: int, out: Path, slides: list[Path]) -> dict[str, list[dict[str, float]]]:
    """Measure the version that this process imports; see :func:`measure_in`."""
    predict = importlib.import_module("hagmil.runtime.predict")
    cascade = importlib.import_module("hagmil.runtime.inference.cascade")
    inputs = importlib.import_module("hagmil.runtime.inputs")
    model = importlib.import_module("hagmil.runtime.inference.loaded_bundle").load_model(bundle, threads=1)
    setattr(cascade, "encode_patches", features_from_coordinates)  # noqa: B010 - a module of the other version
    steps = CpuSteps()
    for name, functions in STEPS.items():
        for module, attribute in functions:
            owner = importlib.import_module(_RUNTIME + module)
            if hasattr(owner, attribute):
                steps.wrap(owner, attribute, name)
    found: dict[str, list[dict[str, float]]] = {}
    for path in slides:
        request = inputs.slide_request(path)
        for repeat in range(repeats + 1):
            steps.seconds = {}
            start = process_time()
            result = predict.predict_one(request, model, out / path.stem, predict.PredictOptions())
            total = process_time() - start - steps.seconds[CASCADE]
            if result.status != "ok":
                raise SystemExit(f"{path}: {result.message}")
            spent = {step: steps.seconds.get(step, 0.0) for step in STEPS if step != CASCADE}
            spent |= {"rest": total - sum(spent.values()), "total": total}
            if repeat:
                found.setdefault(path.stem, []).append({step: value * 1000 for step, value in spent.items()})
    return found


def features_from_coordinates(
    _slide: Any, _geometry: Any, coords: Any, _backbone: Any, feature_dim: int, *_arguments: Any, **_options: Any
) -> Any:
    """Take the place of ``encode_patches``: features that depend on the coordinates only, float32 (patches, dim)."""
    import numpy as np

    phases = coords @ np.array([0.37, 0.73]) * 1e-3  # (patches,)
    return np.sin(phases[:, np.newaxis] * np.arange(1, feature_dim + 1)).astype(np.float32)


if __name__ == "__main__":
    if "HAGMIL_FIXED_COST" in os.environ:
        print(
            json.dumps(
                worker(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
            )
        )
    else:
        main()
