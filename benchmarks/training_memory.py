"""Memory and time of a training step of HAG-MIL, with and without checkpointed blocks.

    OMP_NUM_THREADS=1 python benchmarks/training_memory.py --patches 10000 --out benchmarks/results/training_memory.json

HAG-MIL with its published widths and three stages runs one training step for each stage (forward, losses, backward and
Adam, with the code of the training loop) on bags of the same size with synthetic features of length 1024. Each variant
runs in a separate process, as peak resident memory is measured per process. The second step is timed, when Adam has its
state. Both wall-clock and CPU seconds are given; the latter depend less on other load on the machine. A variant that
needs more than ``--limit-gb`` is reported as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hagmil.trainer.config.training import HagMilConfig, parse_config
from hagmil.trainer.data.cohort import Bag, CohortStage
from hagmil.trainer.methods.hag_mil import HagMil

FEATURE_DIM = 1024
STAGES = ("coarse", "middle", "fine")
VARIANTS = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))
SEED = 5
GB = 1024**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=10_000, help="patches in the bag of every stage")
    parser.add_argument("--steps", type=int, default=2, help="number of slides; the last is timed")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--limit-gb", type=float, default=20.0, help="limit of the address space of each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_memory.json"))
    parser.add_argument("--measure", nargs=2, metavar=("PRECISION", "CHECKPOINT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        precision, checkpoint = arguments.measure
        print(json.dumps(measure(arguments, precision, checkpoint == "True")))
        return
    variants = [(precision, checkpoint) for precision, checkpoint in VARIANTS if precision in arguments.precisions]
    rows = [in_a_process(precision, checkpoint) for precision, checkpoint in variants]
    report = {
        "patches": arguments.patches,
        "stages": len(STAGES),
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown({"rows": rows}))


def in_a_process(precision: str, checkpoint: bool) -> dict[str, Any]:
    """Measure one variant in a separate process."""
    command = [sys.executable, *sys.argv, "--measure", precision, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    variant = {"precision": precision, "checkpointed": checkpoint}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {**variant, "failed": lines[-1]}
    return {**variant, **json.loads(done.stdout)}


def measure(arguments: argparse.Namespace, precision: str, checkpoint: bool) -> dict[str, Any]:
    """Measure peak memory and seconds of a training step, in this process."""
    limit = round(arguments.limit_gb * GB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    method = HagMil(configuration(precision, checkpoint), stages(), FEATURE_DIM, classes=2)
    # With f = 1 and everything kept, the bags of all stages have the same size.
    bag = Bag("synthetic", 1, tuple(torch.randn(arguments.patches, FEATURE_DIM).half() for _ in STAGES))
    before = peak_gb()
    for _ in range(arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses = method.train_slide(bag)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "peak_rss_gb": round(peak_gb(), 2),
        "before_first_step_gb": round(before, 2),
        "seconds_per_step": round(seconds / len(STAGES), 1),
        "cpu_seconds_per_step": round(cpu_seconds / len(STAGES), 1),
        "losses": losses,
    }


def configuration(precision: str, checkpoint: bool) -> HagMilConfig:
    """Return the published recipe."""
    tree = {
        "data": {"features": "unused", "labels": "unused", "split": "unused"},
        "precision": precision,
        "checkpoint_blocks_above": 0 if checkpoint else None,
        "cascade": {"keep_train": 10**9},
    }
    config = parse_config(tree, source="benchmark")
    assert isinstance(config, HagMilConfig)
    return config


def stages() -> tuple[CohortStage, ...]:
    """Return three stages with bags of the same size."""
    *coarse, finest = STAGES
    return (*(CohortStage(name, 1.0, 1) for name in coarse), CohortStage(finest, 1.0, None))


def peak_gb() -> float:
    """Return the peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def markdown(report: dict[str, Any]) -> str:
    """Return the rows as a table."""
    lines = [
        "| precision | checkpointed blocks | peak RSS, GiB | seconds per step | CPU seconds per step |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = f"| {row['precision']} | {'yes' if row['checkpointed'] else 'no'} "
        found = row.get("failed") and f"| did not fit: {row['failed']} | | |"
        lines.append(
            cells + (found or f"| {row['peak_rss_gb']} | {row['seconds_per_step']} | {row['cpu_seconds_per_step']} |")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
