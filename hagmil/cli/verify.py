"""hagmil verify: check that a bundle is intact and works on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.runtime.verify import VerifyReport

_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow", "note": "cyan"}


def verify(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle folder. Default: the built-in demonstration model.", metavar="[BUNDLE]", show_default=False
        ),
    ] = None,
    provider: common.Provider = "cpu",
    threads: common.Threads = None,
    rebuild: common.Rebuild = False,
    trt_flavour: common.TrtFlavour = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check the digests, manifest and graphs of a bundle, and run its self-test with a provider.

    Exit code 4 if a check fails. TensorRT engines for other machines are listed and are not a failure.
    """
    from hagmil.errors import BundleError
    from hagmil.runtime.inference.loaded_bundle import builtin_bundle
    from hagmil.runtime.verify import verify_bundle

    folder = bundle or builtin_bundle()
    report = verify_bundle(folder, provider=provider, threads=threads, rebuild=rebuild, trt_flavour=trt_flavour)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _show(report)
    if not report.passed:
        if as_json:
            raise typer.Exit(BundleError.exit_code)
        failed = [check for check in report.checks if check.state == "failed"]
        raise BundleError(f'bundle "{folder}" must not be used: {failed[0].detail}')


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
        console.print("the bundle can be used on this machine")
