"""Stage models: time and memory of the transformer of full size for a bag.

Run it in the root of the repository:

    OMP_NUM_THREADS=1 python -m benchmarks.stage_models --out benchmarks/results/stage_models.json

Three implementations with the same weights and bag run alternately in separate processes: the published arithmetic in
eager PyTorch (:func:`published`: all heads at once, four products in a Newton-Schulz step, and softmax1 · pinv
multiplied before softmax3 · V, as counted in section 3.2 of the paper), hagmil's module in eager PyTorch, and its ONNX
graph in a session of hagmil. Each warms up on 1,000 patches. Results are medians of wall-clock and CPU seconds (on a
shared machine, only the latter are comparable), and the peak resident memory above that of the process before it loaded
the model, which includes weights, loading and arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from hagmil.trainer.models.iat import IatBlock, IntegratedAttentionTransformer
    from hagmil.trainer.models.nystrom import NystromAttention

FEATURES = 1024
WARM_UP_PATCHES = 1_000
PEERS = ("published, eager", "ours, eager", "ours, ONNX Runtime")


def published(model: IntegratedAttentionTransformer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and attention of a bag, with the published order of operations."""
    import torch

    embeddings = []
    for block in model.blocks:
        rows, embedding, scores = _published_block(block, rows)
        embeddings.append(embedding)
    return model.classifier(model.combine(torch.stack(embeddings, dim=1)).flatten()), scores


def _published_block(block: IatBlock, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    rows = block.project(rows)
    rows = rows * block.residual_scale + _published_attention(block.attention, block.attention_norm(rows))
    scores, _ = block.gates(block.norm(rows))
    pooled = torch.softmax(scores, dim=0).unsqueeze(0) @ rows  # (1, width)
    return rows, block.embed(block.norm(pooled))[0], scores


def _published_attention(attention: NystromAttention, rows: Tensor) -> Tensor:
    import torch

    length, width = rows.shape
    heads, marks = attention.heads, attention.landmarks
    padded = torch.nn.functional.pad(rows, (0, 0, -length % marks, 0))
    query, key, value = (
        part.reshape(len(padded), heads, width // heads).transpose(0, 1)
        for part in attention.to_qkv(padded).chunk(3, dim=1)
    )  # (heads, rows, width/heads)
    query = query * attention.scale
    query_marks, key_marks = (part.reshape(heads, marks, -1, width // heads).mean(dim=2) for part in (query, key))
    first = torch.softmax(query @ key_marks.mT, dim=-1)  # (heads, rows, m)
    third = torch.softmax(query_marks @ key.mT, dim=-1)  # (heads, m, rows)
    inverse = _published_inverse(torch.softmax(query_marks @ key_marks.mT, dim=-1), attention.pinv_iterations)
    attended = (first @ inverse) @ (third @ value) + attention.value_conv(value)
    out: Tensor = attention.to_out(attended.transpose(0, 1).reshape(len(padded), width))[-length:]
    return out


def _published_inverse(matrix: Tensor, iterations: int) -> Tensor:
    import torch

    inverse = matrix.mT / (matrix.sum(dim=-1).max() * matrix.sum(dim=-2).max())
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype).unsqueeze(0)
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = 0.25 * inverse @ (13 * identity - product @ inner)
    return inverse


def _model() -> IntegratedAttentionTransformer:
    import torch

    from hagmil.trainer.models.iat import IntegratedAttentionTransformer

    torch.manual_seed(0)
    return IntegratedAttentionTransformer(FEATURES, 2).eval()


def _bag(patches: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(patches).standard_normal((patches, FEATURES), dtype=np.float32)


def write_graph(path: Path) -> None:
    """Export the model, as ``hagmil export`` does."""
    from hagmil.export.graph import save
    from hagmil.export.parity.stages import stage_graph

    save(stage_graph(_model(), FEATURES, "hag-mil"), path)


def measure(peer: str, patches: int, threads: int, repeats: int, graph: Path) -> dict[str, Any]:
    """Measure one implementation on one bag, in this process."""
    import torch

    torch.set_num_threads(threads)
    _import_all()
    bag, warm_up = _bag(patches), _bag(WARM_UP_PATCHES)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = _runner(peer, threads, graph)
    run(warm_up)
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        logits, attention = run(bag)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peer": peer,
        "patches": patches,
        "wall_s": statistics.median(walls),
        "cpu_s": statistics.median(cpus),
        "cpu_s_each": cpus,
        "peak_mb": (peak_kib - before_kib) / 1024,
        "logits": logits.tolist(),
        "attention_sum_of_squares": float(np.square(attention, dtype=np.float64).sum()),
    }


def _import_all() -> None:
    """Import the same modules for every implementation, so that all start with the same memory."""
    import onnxruntime  # noqa: F401

    import hagmil.runtime.sessions.onnx
    import hagmil.trainer.models.iat  # noqa: F401


def _runner(peer: str, threads: int, graph: Path) -> Callable[[Any], tuple[Any, Any]]:
    import torch

    from hagmil.runtime.sessions.onnx import OnnxSession

    if peer == PEERS[2]:
        session = OnnxSession(graph, threads=threads)

        def on_runtime(bag: Any) -> tuple[Any, Any]:
            found = session.run({"features": bag})
            return found["logits"], found["attention"]

        return on_runtime
    model = _model()
    forward = model if peer == PEERS[1] else lambda bag: published(model, bag)

    def eagerly(bag: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            logits, attention = forward(torch.from_numpy(bag))
        return logits.numpy(), attention.numpy()

    return eagerly


def markdown(report: dict[str, Any]) -> str:
    """Return the rows as a table, with ratios to the published arithmetic on the same bag."""
    rows = report["rows"]
    lines = [
        "| patches | implementation | wall, s | CPU, s | speed-up (CPU) | peak above start, MB | ratio to published |",
        "|---|---|---|---|---|---|---|",
    ]
    first = {row["patches"]: row for row in rows if row["peer"] == PEERS[0]}
    for row in rows:
        peer = first[row["patches"]]
        lines.append(
            f"| {row['patches']:,} | {row['peer']} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} "
            f"| {peer['cpu_s'] / row['cpu_s']:.2f} | {row['peak_mb']:.0f} | {row['peak_mb'] / peer['peak_mb']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Run the implementations alternately; write the results after each bag size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--patches", type=int, nargs="+", default=[1_000, 10_000, 40_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="fewer above 6,000 patches, one above 10,000")
    parser.add_argument("--one", nargs=2, metavar=("PEER", "GRAPH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        peer, graph = options.one
        if peer == "graph":
            write_graph(Path(graph))
        else:
            result = measure(peer, options.patches[0], options.threads, options.repeats, Path(graph))
            options.out.write_text(json.dumps(result))
        return
    facts = {
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "threads": options.threads,
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        graph, out = Path(folder) / "stage.onnx", Path(folder) / "out.json"
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        start = [
            sys.executable,
            "-m",
            "benchmarks.stage_models",
            "--threads",
            str(options.threads),
            "--out",
            str(out),
        ]
        subprocess.run([*start, "--one", "graph", str(graph)], check=True, env=environment)
        for patches in options.patches:
            repeats = str(max(1, min(options.repeats, 20_000 // patches)))
            for peer in PEERS:
                command = [*start, "--patches", str(patches), "--repeats", repeats, "--one", peer, str(graph)]
                subprocess.run(command, check=True, env=environment)
                rows.append(json.loads(out.read_text()))
                print(peer, patches, rows[-1]["cpu_s"], rows[-1]["peak_mb"], os.getloadavg(), file=sys.stderr)
            options.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")
    print(markdown({"rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
