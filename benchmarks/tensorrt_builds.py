"""Build time and size of TensorRT engines of hagmil's graphs, in fp32 and fp16.

Run it in the root of the repository; TensorRT-RTX needs no GPU for it:

    python -m benchmarks.tensorrt_builds --out results/

The script writes ``tensorrt_builds.json`` and ``tensorrt_builds.md``, the table in docs/tensorrt.md. The graphs are
those of tests/export/graphs.py, with random weights. Each is built ``--repeats`` times; the fastest build counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hagmil._tensorrt.builder import BuildRequest, build_engine
from hagmil._tensorrt.flavour import Flavour, choose_flavour, resolve_capabilities
from hagmil.bundle import Precision
from hagmil.export.graph import save
from tests.export.graphs import EXAMPLES, example, example_graph

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


@dataclass(frozen=True, slots=True)
class Row:
    """One graph in one precision.

    Args:
        graph: name of the graph.
        precision: precision of its weights and arithmetic.
        nodes: nodes of the ONNX graph.
        layers: layers of TensorRT's network before fusion.
        build_s: seconds of parsing and building in the fastest repeat.
        onnx_bytes: size of the ONNX file.
        engine_bytes: size of the engine.
        activation_bytes: GPU memory of a context for the largest profile, as reported by the builder.
    """

    graph: str
    precision: Precision
    nodes: int
    layers: int
    build_s: float
    onnx_bytes: int
    engine_bytes: int
    activation_bytes: int


def measure(name: str, precision: Precision, flavour: Flavour, capabilities: tuple[str, ...], repeats: int) -> Row:
    """Export a graph and build it ``repeats`` times."""
    model, profiles = example_graph(name, precision), example(name).profiles
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        save(model, graph)
        request = BuildRequest(graph, profiles, capabilities)
        builds = [build_engine(flavour, request) for _ in range(repeats)]
        return Row(
            graph=name,
            precision=precision,
            nodes=len(model.graph.node),
            layers=builds[0].layers,
            build_s=round(min(build.seconds for build in builds), 2),
            onnx_bytes=graph.stat().st_size,
            engine_bytes=len(builds[0].data),
            activation_bytes=builds[0].memory_bytes or 0,
        )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with fp32 and fp16 of a graph in one row."""
    by_graph = {name: {row.precision: row for row in rows if row.graph == name} for name in EXAMPLES}
    lines = [
        "| graph | nodes | layers | build, s | ONNX, MB | engine, MB | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, both in by_graph.items():
        if len(both) == len(PRECISIONS):
            columns = [
                [str(both[precision].nodes) for precision in PRECISIONS],
                [str(both[precision].layers) for precision in PRECISIONS],
                [f"{both[precision].build_s:.1f}" for precision in PRECISIONS],
                *(
                    [f"{getattr(both[precision], size) / 1e6:.1f}" for precision in PRECISIONS]
                    for size in ("onnx_bytes", "engine_bytes", "activation_bytes")
                ),
            ]
            lines.append(f"| {name} | " + " | ".join(" / ".join(column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Build all graphs and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--graph", action="append", choices=list(EXAMPLES), help="only this graph; repeatable")
    parser.add_argument("--compute-capability", action="append", default=None, help="default 8.9; repeatable")
    parser.add_argument("--trt-flavour", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    flavour = choose_flavour(options.trt_flavour)
    wanted = tuple(options.compute_capability or (("8.9",) if flavour.targets else ()))
    capabilities = resolve_capabilities(flavour, wanted)
    rows = []
    for name in options.graph or EXAMPLES:
        for precision in PRECISIONS:
            rows.append(measure(name, precision, flavour, capabilities, options.repeats))
            print(rows[-1], file=sys.stderr)
    machine = f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    facts = {"flavour": flavour.title, "capabilities": capabilities, "machine": machine, "repeats": options.repeats}
    report = facts | {"rows": [asdict(row) for row in rows]}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tensorrt_builds.json").write_text(json.dumps(report, indent=2))
    (options.out / "tensorrt_builds.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
