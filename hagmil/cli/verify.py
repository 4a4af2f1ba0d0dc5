"""hagmil verify: may this bundle be used on this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.runtime.verify import VerifyReport

_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow", "note": "cyan"}


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    provider: common.Provider = "cpu",
    threads: common.Threads = None,
    rebuild: common.Rebuild = False,
    trt_flavour: common.TrtFlavour = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check a bundle's digests, schema and graphs, and try its self-test on this machine and provider.

    Ends with exit code 4 where anything fails. Engines for other machines are noted and are no failure.
    """
    from hagmil.errors import BundleError
    from hagmil.runtime.verify import verify_bundle

    report = verify_bundle(bundle, provider=provider, threads=threads, rebuild=rebuild, trt_flavour=trt_flavour)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _show(report)
    if not report.passed:
        if as_json:
            raise typer.Exit(BundleError.exit_code)
        failed = [check for check in report.checks if check.state == "failed"]
        raise BundleError(f'bundle "{bundle}" must not be used: {failed[0].detail}')


def _show(report: VerifyReport) -> None:
    from rich.text import Text

    view = common.table("part", "subject", "state", "detail")
    for check in report.checks:
        view.add_row(
            check.part, Text(check.subject), Text(check.state, style=_COLOURS[check.state]), Text(check.detail)
        )
    console = common.stdout()
    console.print(view)
    console.print(f"bundle sha256: {report.bundle_sha256 or 'unknown'}; provider: {report.provider}", highlight=False)
    if report.passed:
        console.print("the bundle may be used on this machine")
