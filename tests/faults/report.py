"""The table of all cases in docs/reliability.md, with the outcome of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hagmil.runtime.inference.loaded_bundle import load_model
from tests.faults import call_cases, slide_cases
from tests.runtime.small_bundle import write_small_bundle

START, END = "<!-- cases: scripts/make_reliability_page.py -->\n", "<!-- end of cases -->\n"
GOOD = ("ok", "1 slides", "run again")


@dataclass(frozen=True)
class Row:
    """A case and its outcome."""

    section: str
    name: str
    expected: str
    actual: str


def run_cases(folder: Path) -> list[Row]:
    """Run all cases in an empty folder."""
    model = load_model(write_small_bundle(folder / "bundle"), threads=1)
    (folder / "slides").mkdir()
    actual = slide_cases.outcomes(folder / "slides", model)
    rows = [
        Row(each.section, each.name, each.expected, actual[f"{each.section}: {each.name}"])
        for each in slide_cases.CASES
    ]
    for number, case in enumerate(call_cases.CASES):
        own = folder / f"call_{number:03d}"
        own.mkdir()
        rows.append(Row(case.section, case.name, case.expected, call_cases.outcome(case, own)))
    order = list(dict.fromkeys(row.section for row in rows))
    return sorted(rows, key=lambda row: order.index(row.section))


def section_of_page(rows: list[Row]) -> str:
    """The part of the page between its two marks."""
    promised = sum(row.expected == row.actual for row in rows)
    bad = sum(row.expected not in GOOD for row in rows)
    sections = Counter(row.section for row in rows)
    counts = ", ".join(f"{name} {count}" for name, count in sections.items())
    return "\n".join(
        [
            START.rstrip("\n"),
            f"{len(rows)} cases, of which {promised} ended as expected. {bad} ({bad / len(rows):.0%}) are bad inputs, "
            "which must end in an error.",
            f"Cases by part: {counts}.",
            "",
            "| part | input | expected | actual |",
            "|---|---|---|---|",
            *(f"| {row.section} | {row.name} | {row.expected} | {row.actual} |" for row in rows),
            END,
        ]
    )


def page_with(page: str, rows: list[Row]) -> str:
    """The page with this table."""
    before, _, rest = page.partition(START)
    return before + section_of_page(rows) + rest.partition(END)[2]
