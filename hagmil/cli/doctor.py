"""hagmil doctor: what this machine has and lacks."""

from __future__ import annotations

import typer

from hagmil.cli import _common as common

_MARKS = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "optional": "[yellow]not available[/]"}
_EXIT_LACKS = 5


def doctor() -> None:
    """List what this machine has and lacks, and how to install what is missing.

    Exit code 5 if inference cannot run.
    """
    from rich.table import Table

    from hagmil.runtime.doctor import examine

    findings = examine()
    view = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        view.add_row(finding.name, _MARKS[finding.state], finding.detail.replace("[", "\\["))
    common.stdout().print(view)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(_EXIT_LACKS)
