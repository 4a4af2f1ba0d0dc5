"""``results.csv``: one row for every slide of the output folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from hagmil._files import write_text
from hagmil.runtime.results.result import Result

TABLE_NAME = "results.csv"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def write_table(folder: Path, results: Sequence[Result], classes: Sequence[str]) -> None:
    """Write ``results.csv`` atomically, including slides that were rejected or failed.

    Control characters in names are escaped, so that each row is one line. Text that a spreadsheet would take for a
    formula starts with an apostrophe.

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
    texts = [result.slide_id, result.slide, result.status, result.code, result.message, result.prediction]
    return [
        *(_cell(text or "") for text in texts),
        *("" if value is None else f"{value:.6f}" for value in values),
        f"{result.timing_s.get('total', 0.0):.3f}",
    ]


def _cell(text: str) -> str:
    """A cell on one line that no spreadsheet takes for a formula: control characters are escaped as in Python."""
    shown = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown
