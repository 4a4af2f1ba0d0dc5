"""How long TensorRT takes to build hagmil's graphs, and how large the engines are, in fp32 and fp16.

Run it from the repository's root; TensorRT-RTX needs no GPU for it:

    python -m benchmarks.tensorrt_builds --out results/

It writes ``tensorrt_builds.json`` and ``tensorrt_builds.md``, the table of docs/tensorrt.md. The graphs are those of
tests/export/graphs.py, with random weights; each is built ``--repeats`` times, and the fastest build counts.
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

from hagmil._files import write_text
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
        graph: its name.
        precision: of its insides.
        nodes: of the ONNX graph.
        layers: of TensorRT's network, before fusion.
        build_s: seconds of parsing and building, the fastest of the repeats.
        onnx_bytes: size of the ONNX file.
        engine_bytes: size of the engine.
        activation_bytes: GPU memory that a context of the largest profile takes, by the builder's own account.
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
    """Export a graph, and build it a few times."""
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
    """The rows as Markdown, fp32 and fp16 of a graph beside one another."""
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
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--graph", action="append", choices=list(EXAMPLES), help="only this one; repeatable")
    parser.add_argument("--compute-capability", action="append", default=None, help="8.9 where none is given")
    parser.add_argument("--trt-flavour", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    flavour = choose_flavour(options.trt_flavour)
    asked = tuple(options.compute_capability or (("8.9",) if flavour.targets else ()))
    capabilities = resolve_capabilities(flavour, asked)
    rows = []
    for name in options.graph or EXAMPLES:
        for precision in PRECISIONS:
            rows.append(measure(name, precision, flavour, capabilities, options.repeats))
            print(rows[-1], file=sys.stderr)
    machine = f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    facts = {"flavour": flavour.title, "capabilities": capabilities, "machine": machine, "repeats": options.repeats}
    write_text(
        options.out / "tensorrt_builds.json", json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2)
    )
    write_text(options.out / "tensorrt_builds.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
