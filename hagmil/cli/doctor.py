"""hagmil doctor: what this machine has and lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hagmil.runtime.doctor.report import DoctorReport

_MARKS = {
    "ok": "[green]ok[/]",
    "missing": "[red]missing[/]",
    "failed": "[red]failed[/]",
    "optional": "[yellow]not available[/]",
}


def doctor(
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider", help="Try this provider only: cpu, cuda or tensorrt. Default: all.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """List what this machine has and lacks, and try each provider on a tiny graph.

    Exit code 5 if a package that inference needs is missing, if no provider starts, or if the provider given with
    --provider does not.
    """
    from hagmil.errors import EnvironmentLacks, UsageError
    from hagmil.runtime.doctor.report import diagnose
    from hagmil.runtime.sessions import PROVIDERS, Provider

    tried = tuple(name for name in PROVIDERS if provider in (None, name))
    if not tried:
        raise UsageError(f'no provider "{provider}"; choose one of {", ".join(get_args(Provider))}')
    report = diagnose(tried)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _show(report)
    if not report.starts() or any(finding.state == "missing" for finding in report.installed):
        raise typer.Exit(EnvironmentLacks.exit_code)


def _show(report: DoctorReport) -> None:
    from rich.table import Table

    view = Table(box=None, pad_edge=False, show_header=False)
    for name, state, detail in _rows(report):
        view.add_row(name, _MARKS[state], detail.replace("[", "\\["))
    common.stdout().print(view)


def _rows(report: DoctorReport) -> Iterator[tuple[str, str, str]]:
    """Name, state and detail of each line."""
    for finding in report.installed:
        yield finding.name, finding.state, finding.detail
    nvidia = report.nvidia
    if nvidia.cuda:
        yield "NVIDIA driver", "ok", f"{nvidia.driver or 'release unknown'}, supports CUDA {nvidia.cuda}"
    if nvidia.problem:
        yield "GPU", "optional", nvidia.problem
    for index, gpu in enumerate(nvidia.gpus):
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
        yield f"GPU {index}", "ok", f"{gpu.name}, {memory}, compute capability {gpu.capability}"
    for trial in report.providers:
        state = "optional" if trial.state == "missing" else trial.state
        detail = f"{trial.runs_on}: {trial.detail}" if trial.runs_on else trial.detail
        yield f"provider {trial.provider}", state, detail
