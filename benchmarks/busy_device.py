"""Whether a run over many slides keeps a device busy, shown on a simulated device.

    python -m benchmarks.busy_device [--before DIR] [--slides 16] [--out benchmarks/results/busy_device.json]

The slides are pyramids of ``--side`` pixels that repeat CMU-1-Small-Region of the OpenSlide test data. The model is a
demonstration model (that of the earlier version), but its sessions only wait: a batch takes as long as on a device that
encodes ``--rate`` patches per second, and the processor is free meanwhile. As on a GPU, batches queue on the device,
and the caller waits for the batch before the last one; a stage model waits for all of them and takes no time itself.
Features are some pixels of each patch. All other steps are real: opening, masks, reading, drawing and writing.

A run cannot take less than the time of the device, nor less than its CPU time divided by the number of cores. The
result is the ratio of the wall-clock time to the larger of both. ``--before`` names the source tree of another version;
both versions run alternately, each in a process of its own, and the run with the smallest wall-clock time counts,
because other work on the machine only makes it larger. On a busy machine, give the command priority (``nice -n -15``).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

from numpy.typing import NDArray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="source tree of another version, measured in turn with this one")
    parser.add_argument("--slides", type=int, default=16)
    parser.add_argument("--side", type=int, default=16_384, help="width and height of the slides in pixels")
    parser.add_argument("--rate", type=float, default=10_000, help="patches per second of the device")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each version")
    parser.add_argument("--folder", type=Path, help="folder that keeps the slides for later runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/busy_device.json"))
    arguments = parser.parse_args()
    from benchmarks.machine import machine

    trees = {"after": Path(__file__).parents[1]}
    if arguments.before is not None:
        trees = {"before": arguments.before, **trees}
    bundle = next(iter(trees.values())) / "hagmil" / "demo_bundle"
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_slides(arguments.folder or Path(temporary), arguments.side, arguments.slides)
        for _ in range(arguments.rounds):
            for name, tree in trees.items():
                rows[name].append(run_in(tree, bundle, folder, arguments.rate))
    report = {
        "machine": machine(),
        "slides": arguments.slides,
        "side_px": arguments.side,
        "patches_per_s": arguments.rate,
        "rows": [
            {
                "version": name,
                **min(found, key=lambda row: row["wall_s"]),
                "all_wall_s": [row["wall_s"] for row in found],
            }
            for name, found in rows.items()
        ],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def make_slides(folder: Path, side_px: int, count: int) -> Path:
    """Make a folder with slides of the same content, unless it exists."""
    from benchmarks.fixed_cost import write_pyramid

    slides = folder / f"busy_{side_px}_{count}"
    slides.mkdir(parents=True, exist_ok=True)
    first = slides / "slide_00.tif"
    if not first.is_file():
        write_pyramid(first, side_px, side_px)
    for index in range(1, count):
        path = slides / f"slide_{index:02d}.tif"
        if not path.exists():
            os.link(first, path)
    return slides


def run_in(tree: Path, bundle: Path, slides: Path, rate: float) -> dict[str, float]:
    """Run one version on all slides in a process of its own; see :func:`worker`."""
    command = [sys.executable, str(Path(__file__).resolve()), str(bundle), str(slides), str(rate)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "HAGMIL_BUSY_DEVICE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tree)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    heads = ("version", "wall s", "device s", "CPU s", "CPU s / cores", "wall / larger of both")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in report["rows"]:
        cells = [f"{row[key]:.2f}" for key in ("wall_s", "device_s", "cpu_s", "cpu_s_per_core", "ratio")]
        lines.append("| " + " | ".join((row["version"], *cells)) + " |")
    return "\n".join(lines)


class SimulatedDevice:
    """A device that works on one batch after the other without using the processor.

    Args:
        rate: patches per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._throttled_at = 0.0
        self.patches = 0

    def submit(self, patches: int) -> None:
        """Queue a batch."""
        self._free_at = max(self._free_at, perf_counter()) + patches / self._rate
        self.patches += patches

    def throttle(self) -> None:
        """Wait for what was queued before the previous call, as ``hagmil.runtime.inference.device.Gpu`` does."""
        earlier, self._throttled_at = self._throttled_at, self._free_at
        sleep(max(0.0, earlier - perf_counter()))

    def synchronize(self) -> None:
        """Wait for everything that was queued."""
        sleep(max(0.0, self._free_at - perf_counter()))


class SimulatedBackbone:
    """A session that queues batches on the device, and gives some pixels of each patch as its features.

    Args:
        device: the device.
        features: length of a feature vector.
    """

    provider, on_device = "simulated", True

    def __init__(self, device: SimulatedDevice, features: int) -> None:
        self._device, self._features = device, features

    def run(self, inputs: dict[str, NDArray[Any]], *, last: bool = False) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Queue a batch of patches, uint8 (batch, height, width, 3)."""
        patches = inputs["patches"]
        self._device.submit(len(patches))
        return {"features": patches.reshape(len(patches), -1)[:, : self._features].astype("float32")}


class SimulatedStage:
    """A stage model that takes no time: attention is the first feature.

    Args:
        device: the device.
    """

    provider, on_device = "simulated", True

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device

    def run(self, inputs: dict[str, NDArray[Any]], *, last: bool = False) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Wait for the features, and return attention and constant logits."""
        import numpy as np

        self._device.synchronize()
        return {"logits": np.array([0.0, 1.0], np.float32), "attention": inputs["features"][:, 0].copy()}


def worker(bundle: Path, slides: Path, rate: float) -> dict[str, float]:
    """Run the version that this process imports.

    Args:
        bundle: the bundle that gives stages and sizes.
        slides: folder of the slides.
        rate: patches per second of the device.

    Returns:
        Seconds of the run: wall-clock, device and CPU, and the ratio of the first to the larger of the bounds.
    """
    predict = importlib.import_module("hagmil.runtime.predict")
    loaded = importlib.import_module("hagmil.runtime.inference.loaded_bundle")
    encode = importlib.import_module("hagmil.runtime.inference.encode")
    inputs = importlib.import_module("hagmil.runtime.inputs")
    host = importlib.import_module("hagmil.runtime.inference.device").Host()
    device = SimulatedDevice(rate)
    host.throttle = device.throttle
    setattr(encode, "device_of", lambda _session: host)  # noqa: B010 - a module of the other version
    model = loaded.load_model(bundle, threads=1)
    manifest = model.bundle.manifest
    backbone = SimulatedBackbone(device, manifest.backbone.features)
    model = loaded.LoadedModel(model.bundle, backbone, tuple(SimulatedStage(device) for _ in manifest.stages))
    requests = inputs.slide_requests([slides])
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as out:
        predict.predict_requests(requests[:1], model, Path(out) / "warm", predict.PredictOptions())
        device.patches = 0
        wall, cpu = perf_counter(), process_time()
        results = predict.predict_requests(requests, model, Path(out) / "run", predict.PredictOptions())
        wall, cpu = perf_counter() - wall, process_time() - cpu
    failed = [result.message for result in results if result.status != "ok"]
    if failed:
        raise SystemExit(failed[0])
    busy = device.patches / rate
    return {
        "wall_s": round(wall, 3),
        "device_s": round(busy, 3),
        "cpu_s": round(cpu, 3),
        "cpu_s_per_core": round(cpu / cores, 3),
        "ratio": round(wall / max(busy, cpu / cores), 3),
    }


if __name__ == "__main__":
    if "HAGMIL_BUSY_DEVICE" in os.environ:
        print(json.dumps(worker(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))))
    else:
        main()
