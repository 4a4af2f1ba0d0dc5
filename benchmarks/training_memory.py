"""How much memory and time does a training step of HAG-MIL take, with and without checkpointed blocks?

    OMP_NUM_THREADS=1 python benchmarks/training_memory.py --patches 10000 --out benchmarks/results/training_memory.json

HAG-MIL with its published widths and three stages takes one training step a stage on bags of the same number of
patches, of synthetic features of length 1024: forward, losses, backward and Adam, by the training loop's own code.
Each way of computing runs in a process of its own, since a peak of resident memory is a process's; the second step
is the one that is timed, after Adam has made its state. Seconds are given by the clock and of the processor; the
latter do not count what else the machine does. A way that needs more than ``--limit-gb`` ends there and is reported so.
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
WAYS = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))
SEED = 5
GB = 1024**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=10_000, help="of every stage's bag")
    parser.add_argument("--steps", type=int, default=2, help="slides; the last is timed")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--limit-gb", type=float, default=20.0, help="of address space, for each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_memory.json"))
    parser.add_argument("--measure", nargs=2, metavar=("PRECISION", "CHECKPOINT"), help="one way, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        precision, checkpoint = arguments.measure
        print(json.dumps(measure(arguments, precision, checkpoint == "True")))
        return
    ways = [(precision, checkpoint) for precision, checkpoint in WAYS if precision in arguments.precisions]
    rows = [in_a_process(precision, checkpoint) for precision, checkpoint in ways]
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
    """One way of computing, in a process of its own."""
    command = [sys.executable, *sys.argv, "--measure", precision, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    way = {"precision": precision, "checkpointed": checkpoint}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {**way, "failed": lines[-1]}
    return {**way, **json.loads(done.stdout)}


def measure(arguments: argparse.Namespace, precision: str, checkpoint: bool) -> dict[str, Any]:
    """Peak memory and seconds of training steps, by stage."""
    limit = round(arguments.limit_gb * GB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    method = HagMil(configuration(precision, checkpoint), stages(), FEATURE_DIM, classes=2)
    # f = 1 and everything is kept: every stage's bag is of the same size, as is asked for.
    bag = Bag("synthetic", 1, tuple(torch.randn(arguments.patches, FEATURE_DIM).half() for _ in STAGES))
    before = peak_gb()
    for _ in range(arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses = method.train_slide(bag)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "peak_rss_gb": round(peak_gb(), 2),
        "before_the_first_step_gb": round(before, 2),
        "seconds_a_step": round(seconds / len(STAGES), 1),
        "cpu_seconds_a_step": round(cpu_seconds / len(STAGES), 1),
        "losses": losses,
    }


def configuration(precision: str, checkpoint: bool) -> HagMilConfig:
    """The published recipe."""
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
    """Three stages whose bags hold the same rows."""
    *coarse, finest = STAGES
    return (*(CohortStage(name, 1.0, 1) for name in coarse), CohortStage(finest, 1.0, None))


def peak_gb() -> float:
    """The highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def markdown(report: dict[str, Any]) -> str:
    """The rows as a table."""
    lines = [
        "| precision | blocks checkpointed | peak RSS, GiB | seconds a step | CPU seconds a step |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        way = f"| {row['precision']} | {'yes' if row['checkpointed'] else 'no'} "
        found = row.get("failed") and f"| did not fit: {row['failed']} | | |"
        lines.append(
            way + (found or f"| {row['peak_rss_gb']} | {row['seconds_a_step']} | {row['cpu_seconds_a_step']} |")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
