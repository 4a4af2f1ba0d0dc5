"""Make the built-in demonstration bundle by running the demonstration on more phantoms.

    python scripts/make_demo_bundle.py

It writes hagmil/demo_bundle and takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from hagmil.runtime.inference.loaded_bundle import builtin_bundle
from hagmil.workflows.demo import DemoSize, run_demo

SIZE = DemoSize(train_slides=96, unseen_slides=40, size_px=2048, seed=20)
LARGEST_BYTES = 3_000_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=builtin_bundle())
    out: Path = arguments.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        report = run_demo(Path(folder) / "demo", SIZE, show)
        size = sum(path.stat().st_size for path in report.bundle.rglob("*") if path.is_file())
        correct = sum(
            slide.label == result.prediction for slide, result in zip(report.truths, report.results, strict=True)
        )
        print(
            f"{correct} of {len(report.results)} predictions correct, AUC {report.auc:.3f}, "
            f"lesion ratio {report.lesion_ratio:.2f}, {size} bytes"
        )
        if size > LARGEST_BYTES:
            raise SystemExit(f"the bundle has {size} bytes, more than the limit of {LARGEST_BYTES}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(report.bundle, out)


def show(step: str, done: int, total: int) -> None:
    """Print progress ten times for each step."""
    if done % max(1, total // 10) == 0:
        print(f"{step}: {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
