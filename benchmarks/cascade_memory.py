"""Does a cascade's memory depend on the slide's size, and does it read only what the quadtree says?

    python benchmarks/cascade_memory.py --sizes 8000 20000 --out benchmarks/results/cascade_memory.json

A bundle with resnet50-trunc and the full-size transformer at each of three stages (random weights: what is measured
does not depend on them) runs over a phantom of each size, in a process of its own. Given for each: peak resident
memory of that process, seconds by step, and patches read at each stage beside what the quadtree says they must be.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from hagmil.bundle import Backbone, Manifest, Provenance, Stage, file_entries, open_backbone, write_manifest
from hagmil.export.backbones import export_backbone
from hagmil.export.graph import save
from hagmil.export.stages import stage_graph
from hagmil.phantom import PhantomSpec, write_phantom
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.models.iat import IntegratedAttentionTransformer

SPACINGS_UM = (2.0, 1.0, 0.5)
PATCH_PX = 256
KEEP = 50
SEED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8000, 20000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cascade_memory.json"))
    parser.add_argument("--folder", type=Path, help="where phantoms and bundle are kept for another run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bundle = folder / "bundle"
        if not bundle.is_dir():
            make_bundle(bundle, folder / "backbone")
        rows = [measure(phantom_of(size, folder), size, bundle, folder / "out") for size in arguments.sizes]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"keep": KEEP, "patch_px": PATCH_PX, "rows": rows}, indent=2) + "\n")
    for row in rows:
        print(row)


def make_bundle(folder: Path, backbone: Path) -> None:
    """A bundle of full size with random weights; one transformer serves all stages."""
    export_backbone("resnet50-trunc", "random", backbone, overwrite=True)
    card = open_backbone(backbone)
    folder.mkdir()
    copyfile(backbone / card.onnx, folder / "backbone.onnx")
    torch.manual_seed(SEED)
    graph = stage_graph(IntegratedAttentionTransformer(card.features, 2), card.features, "hag-mil")
    names = [f"{spacing:g}um" for spacing in SPACINGS_UM]
    for name in names:
        save(graph, folder / f"{name}.onnx")
    stages = [
        Stage(name=name, spacing_um=spacing_um, keep=None if name == names[-1] else KEEP, onnx=f"{name}.onnx")
        for name, spacing_um in zip(names, SPACINGS_UM, strict=True)
    ]
    manifest = Manifest(
        kind="hag-mil",
        classes=("normal", "tumour"),
        patch_px=PATCH_PX,
        stages=tuple(stages),
        backbone=Backbone(onnx="backbone.onnx", features=card.features, name=card.name),
        tissue=TissueParameters(),
        precision="fp32",
        files=file_entries(folder),
        provenance=Provenance(
            created=datetime.now(UTC), hagmil="0", versions={}, checkpoint_sha256="0" * 64, backbone_weights="random"
        ),
        intended_use="Measurement only: its weights are random.",
    )
    write_manifest(folder, manifest)


def phantom_of(size: int, folder: Path) -> Path:
    """A phantom of this size, made unless it is there."""
    path = folder / f"phantom_{size}.tif"
    if not path.is_file():
        write_phantom(PhantomSpec(seed=SEED, label="tumour", size_px=size), path)
    return path


def measure(slide: Path, size: int, bundle: Path, out: Path) -> dict[str, Any]:
    """Run hagmil infer in a process of its own."""
    code = (
        "import json, resource, sys; from hagmil import predict_slide; "
        "r = predict_slide(sys.argv[1], model=sys.argv[2], out=sys.argv[3]); "
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; "
        "print(json.dumps({'peak_rss_mb': round(peak), 'result': json.loads(r.model_dump_json())}))"
    )
    command = [sys.executable, "-c", code, str(slide), str(bundle), str(out / slide.stem)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    result = answer["result"]
    stages = result["stages"]
    said = [stages[0]["candidates"], 4 * min(KEEP, stages[0]["candidates"]), 4 * min(KEEP, stages[1]["candidates"])]
    return {
        "size_px": size,
        "status": result["status"],
        "peak_rss_mb": answer["peak_rss_mb"],
        "encoded": [stage["encoded"] for stage in stages],
        "quadtree_says": said,
        "cpu_s": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, 1),
        "timing_s": result["timing_s"],
    }


if __name__ == "__main__":
    main()
