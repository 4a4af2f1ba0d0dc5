"""Speed and accuracy of int8 backbones on the CPU.

    python benchmarks/int8_backbone.py --out benchmarks/results/int8_backbone.json

1. Backbones alone: resnet50-trunc on patches of 224 pixels (random weights) and the built-in tiny backbone on patches
   of 64 pixels, in float32 and int8, timed alternately on one thread. For each variant of an export (7 or 8 bits for
   weights, first product in int8 or float32), the script gives patches per second and the agreement of features on
   patches that were not used for calibration.
2. Predictions: the demonstration bundle on cohorts of phantoms, with its float32 backbone and with an int8 backbone
   from an export that was calibrated on other phantoms: the share of equal predictions and of equal kept patches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime.quantization as ort_quantization
import torch
from numpy.typing import NDArray

from hagmil.bundle import Bundle, open_bundle
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.int8.backbone import (
    PatchRequirements,
    feature_agreement,
    measure_throughput,
    quantise_backbone,
)
from hagmil.export.int8.quantize import write_quantised
from hagmil.export.parity.slide_parity import ModelSessions, compare_slides
from hagmil.export.parity.synthetic_inputs import synthetic_patches
from hagmil.phantom import write_cohort
from hagmil.progress import no_progress
from hagmil.runtime.bench.machine import this_machine
from hagmil.runtime.inference.loaded_bundle import builtin_bundle
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.patches.plan import stage_specs
from hagmil.runtime.sessions import open_session
from hagmil.workflows.calibration_patches import SlidePatches, calibration_slides
from hagmil.workflows.slide_runner import CascadeRunner

BACKBONES = (("resnet50-trunc", "random", 224, 32, 16), ("tiny", None, 64, 128, 64))
"""Name, weights, side of a patch in pixels, patches to calibrate on, patches to compare and to time on."""
VARIANTS = ((7, "int8"), (7, "fp32"), (8, "int8"), (8, "fp32"))
"""Bits of the weights, and the type of the first product."""
SLIDE_PX = 2048
CALIBRATION_SLIDES = 16
THREADS = 1
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8_backbone.json"))
    parser.add_argument("--slides", type=int, default=40, help="phantoms in a cohort")
    parser.add_argument("--cohorts", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbones = [
            row for backbone in BACKBONES for row in measure_backbone(*backbone, folder, turns=arguments.turns)
        ]
        verdicts = list(measure_verdicts(folder, arguments.slides, arguments.cohorts))
    report = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": this_machine().cpu,
        "threads": THREADS,
        "onnxruntime": version("onnxruntime"),
        "backbones": backbones,
        "verdicts": verdicts,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measure_backbone(
    name: str, weights: str | None, side_px: int, calibration: int, compared: int, folder: Path, *, turns: int
) -> Iterator[dict[str, Any]]:
    """Yield one row for each variant."""
    export_backbone(name, weights, folder / name)
    source = folder / name / "backbone.onnx"
    patches = synthetic_patches("phantom", calibration, side_px, side_px, seed=1)
    others = synthetic_patches("phantom", compared, side_px, side_px, seed=99)
    exact = open_session(source, threads=THREADS)
    expected = exact.run({"patches": others})["features"]
    for bits, first in VARIANTS:
        graph = folder / name / f"{bits}-{first}.onnx"
        with patch.object(ort_quantization, "quantize_static", _with_range(reduced=bits == 7)):
            write_quantised(source, graph, _batches(patches), first_product_fp32=first == "fp32")
        session = open_session(graph, threads=THREADS)
        agreement = feature_agreement(session.run({"patches": others})["features"], expected)
        speed = measure_throughput(exact, session, others[:BATCH], THREADS, turns=turns)
        row = {
            "backbone": name,
            "patch_px": side_px,
            "weight_bits": bits,
            "first_product": first,
            "fp32_patches_per_s": speed.fp32_patches_per_s,
            "int8_patches_per_s": speed.int8_patches_per_s,
            "gain": round(speed.gain, 3),
            "least_cosine": round(agreement.least_cosine, 6),
            "relative_error": round(agreement.relative_error, 5),
            "fp32_bytes": source.stat().st_size,
            "int8_bytes": graph.stat().st_size,
        }
        print(row, flush=True)
        yield row


def measure_verdicts(folder: Path, slides: int, cohorts: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each cohort."""
    bundle = open_bundle(builtin_bundle())
    write_cohort(folder / "calibration", slides=CALIBRATION_SLIDES, size_px=SLIDE_PX, seed=100)
    own = calibration_slides([str(folder / "calibration" / "slides")])
    manifest = bundle.manifest
    requirements = PatchRequirements(tuple(stage_specs(manifest)), manifest.patch_px, manifest.tissue)
    graph = folder / "demo_int8.onnx"
    made = quantise_backbone(bundle.file("backbone.onnx"), graph, SlidePatches(own, no_progress), requirements)
    for seed in range(101, 101 + cohorts):
        write_cohort(folder / f"{seed}", slides=slides, size_px=SLIDE_PX, seed=seed)
        requests = slide_requests([str(folder / f"{seed}" / "slides")])
        runner = CascadeRunner(requests, f"{slides} phantoms, seed {seed}", no_progress)
        exact = runner.run(manifest, _sessions(bundle, bundle.file("backbone.onnx")), "")
        parity = compare_slides(
            exact, runner.run(manifest, _sessions(bundle, graph), ""), what=runner.what, rounded=False
        )
        row = {
            "calibration": made.model_dump(include={"first_product", "least_cosine", "relative_error", "throughput"}),
            **parity.model_dump(exclude={"rounded"}),
        }
        print(row, flush=True)
        yield row


def _sessions(bundle: Bundle, backbone: Path) -> ModelSessions:
    stages = tuple(open_session(bundle.file(stage.onnx), threads=THREADS) for stage in bundle.manifest.stages)
    return ModelSessions(open_session(backbone, threads=THREADS), stages)


def _with_range(*, reduced: bool) -> Any:
    quantise = ort_quantization.quantize_static
    return lambda *arguments, **options: quantise(*arguments, **{**options, "reduce_range": reduced})


def _batches(patches: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (patches[start : start + BATCH] for start in range(0, len(patches), BATCH))


if __name__ == "__main__":
    main()
