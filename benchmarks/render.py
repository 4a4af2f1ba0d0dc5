"""Render docs/benchmarks.md from the results that the benchmarks left.

    python -m benchmarks.render

Each benchmark makes its own table of its own JSON; this puts them on one page. A result that is not there leaves its
section out, and is named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Rendered by `python -m benchmarks.render` from `benchmarks/results/`; to change a number, run its script. Each script
asks one question, has the peers beside hagmil in the same run, and says in its first lines how to run it. Peers come
from `benchmarks/requirements.txt`. What a figure means for a slide of your own, `hagmil bench` tells
([reading its report](bench.md)); what int8 gains and costs stands in [numerics](numerics.md).

A rate depends on the machine, and on what else it was doing; ratios within one run are what to look at. Where a
script took CPU seconds besides wall seconds, that is because the machine was not idle.
"""


@dataclass(frozen=True)
class Section:
    """One question.

    Args:
        title: of the section.
        module: in ``benchmarks``; its ``markdown`` makes the table.
        comment: what to see in it, written by whoever ran it.
    """

    title: str
    module: str
    comment: str


SECTIONS = (
    Section("Reading patches", "reading", ""),
    Section("Tissue masks", "masks", ""),
    Section("Slide to verdict", "slide_to_verdict", ""),
    Section("How the cost grows", "growth", ""),
    Section("What --keep buys", "keep", ""),
    Section("Level models", "level_models", ""),
    Section("A training step", "training_memory", ""),
    Section("Start-up", "start_up", ""),
)


def main() -> None:
    parts = [HEAD]
    for section in SECTIONS:
        result = RESULTS / f"{section.module}.json"
        if not result.exists():
            print(f"no {result.name}: run python -m benchmarks.{section.module}")
            continue
        parts.append(render(section, json.loads(result.read_text())))
    PAGE.write_text("\n".join(parts))


def render(section: Section, report: dict[str, object]) -> str:
    """A section of the page."""
    table = import_module(f"benchmarks.{section.module}").markdown(report)
    comment = f"{section.comment}\n\n" if section.comment else ""
    return f"## {section.title}\n\n`python -m benchmarks.{section.module}`\n\n{comment}{table.strip()}\n"


if __name__ == "__main__":
    main()
