"""``results.csv``: one row for every slide of the output folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from hagmil._files import write_text
from hagmil.runtime.results.result import Result

TABLE_NAME = "results.csv"


def write_table(folder: Path, results: Sequence[Result], classes: Sequence[str]) -> None:
    """Write ``results.csv`` atomically, including slides that were rejected or failed.

    Args:
        folder: the folder of the file.
        results: in the order of the rows; those of earlier runs may come from bundles with other classes.
        classes: the bundle's classes; each gives a column ``p_<class>``. Classes of other bundles follow.
    """
    classes = tuple(dict.fromkeys([*classes, *(name for result in results for name in result.probabilities)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["slide_id", "slide", "status", "code", "message", "prediction", "probability"]
    writer.writerow([*head, *(f"p_{name}" for name in classes), "seconds"])
    writer.writerows(_row(result, classes) for result in results)
    write_text(folder / TABLE_NAME, text.getvalue())


def _row(result: Result, classes: Sequence[str]) -> list[str]:
    probability = result.probabilities[result.prediction] if result.prediction is not None else None
    values = [probability, *(result.probabilities.get(name) for name in classes)]
    return [
        result.slide_id,
        result.slide,
        result.status,
        result.code or "",
        result.message or "",
        result.prediction or "",
        *("" if value is None else f"{value:.6f}" for value in values),
        f"{result.timing_s.get('total', 0.0):.3f}",
    ]
