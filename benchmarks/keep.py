"""Effect of ``--keep``: the number of patches that must be read to get the predictions of reading all of them.

    python -m benchmarks.keep --out benchmarks/results/keep.json

The demonstration bundle runs on a cohort of phantoms that are larger than those of its training and have another seed.
Features of the full quadtree are extracted once; the cascade then runs on them with each number of kept patches.
Agreement is the share of slides with the same prediction as if everything were kept. The last row is the finest stage
alone on all of its patches in quadtree order, as in a pipeline without a cascade.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.features_cascade import (
    EVERYTHING,
    Verdicts,
    accuracy,
    agreement,
    auc,
    cascade_verdicts,
    extract_cohort,
    flat_verdicts,
    phantom_cohort,
    share_read,
    smallest_agreeing,
)
from benchmarks.machine import machine
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.runtime.extract import ExtractOptions, Extractor, parse_stages
from hagmil.runtime.inference.loaded_bundle import LoadedModel, builtin_bundle, load_model

KEEPS = (1, 2, 4, 8, 16, 32)
SEED = 4051
"""Differs from the seeds of the demonstration bundle (20, 21) and of its backbone; see scripts/."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--keeps", type=int, nargs="+", default=list(KEEPS))
    parser.add_argument("--folder", type=Path, help="folder that keeps phantoms and features for later runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/keep.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = measure(arguments.slides, arguments.size, arguments.keeps, arguments.folder or Path(temporary))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def measure(slides: int, size_px: int, keeps: Sequence[int], folder: Path) -> dict[str, Any]:
    """Extract a cohort and run the cascade with each number of kept patches."""
    model = load_model(builtin_bundle())
    cohort = phantom_cohort(folder / "keep_cohort", slides, size_px, SEED)
    started = perf_counter()
    features = extract_cohort(cohort, demo_extractor(model, folder), folder / "keep_features")
    extract_s = perf_counter() - started
    classes = model.bundle.manifest.classes
    labels = np.array([classes.index(slide.label) for slide in cohort], np.int64)
    tried = [cascade_verdicts(model, features, keep) for keep in keeps]
    everything = cascade_verdicts(model, features, EVERYTHING)
    return {
        "machine": machine(),
        "slides": slides,
        "size_px": size_px,
        "seed": SEED,
        "extract_s": round(extract_s, 1),
        "keep_of_bundle": model.bundle.manifest.stages[0].keep,
        "smallest_agreeing_keep": smallest_agreeing(tried, everything),
        "rows": rows_of(tried, everything, flat_verdicts(model, features), labels),
    }


def demo_extractor(model: LoadedModel, folder: Path) -> Extractor:
    """Export the backbone of the bundle again and open an extractor with it."""
    manifest = model.bundle.manifest
    backbone = folder / "keep_backbone"
    card = export_backbone(manifest.backbone.name, None, backbone, overwrite=True)
    if card.sha256 != manifest.files[manifest.backbone.onnx].sha256:
        raise SystemExit(
            "the backbone in the package differs from that of the demonstration bundle; run scripts/make_demo_bundle.py"
        )
    stages = parse_stages(",".join(f"{stage.spacing_um:g}" for stage in manifest.stages))
    options = ExtractOptions(stages=stages, patch_px=manifest.patch_px, tissue=manifest.tissue)
    return Extractor.open(backbone, options)


def rows_of(
    tried: Sequence[Verdicts], everything: Verdicts, flat: Verdicts, labels: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return a row for each number of kept patches, one for all patches, and one for the finest stage alone."""
    named = [(str(verdicts.keep), verdicts) for verdicts in tried]
    return [
        row(name, verdicts, everything, labels)
        for name, verdicts in [*named, ("all", everything), ("finest alone", flat)]
    ]


def row(name: str, verdicts: Verdicts, everything: Verdicts, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Summarise the predictions with one number of kept patches."""
    finest, total = share_read(verdicts, everything)
    area = auc(verdicts, labels)
    return {
        "keep": name,
        "agreement": round(agreement(verdicts, everything), 4),
        "auc": None if area is None else round(area, 4),
        "accuracy": round(accuracy(verdicts, labels), 4),
        "share_of_finest": round(finest, 5),
        "share_of_all": round(total, 5),
        "patches_per_slide": [round(float(each), 1) for each in verdicts.read.mean(axis=0)],
        "largest_difference": round(float(np.abs(verdicts.probabilities - everything.probabilities).max()), 4),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the rows as a table."""
    heads = (
        "keep",
        "agreement with keeping all",
        "AUC",
        "accuracy",
        "finest patches read",
        "all patches read",
        "patches per slide, coarse to fine",
        "largest difference of a probability",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in report["rows"]:
        cells = [
            each["keep"],
            f"{each['agreement']:.1%}",
            "" if each["auc"] is None else f"{each['auc']:.3f}",
            f"{each['accuracy']:.1%}",
            f"{each['share_of_finest']:.1%}",
            f"{each['share_of_all']:.1%}",
            " + ".join(f"{patches:.0f}" for patches in each["patches_per_slide"]),
            f"{each['largest_difference']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
