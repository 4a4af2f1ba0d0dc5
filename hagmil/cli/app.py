"""The Typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from hagmil._versions import __version__
from hagmil.cli import _common as common
from hagmil.cli._logging import accept_verbose, configure_logging
from hagmil.cli.bench import bench
from hagmil.cli.demo import demo
from hagmil.cli.doctor import doctor
from hagmil.cli.eval import evaluate
from hagmil.cli.export import export
from hagmil.cli.export_backbone import export_backbone
from hagmil.cli.extract import extract
from hagmil.cli.import_ import import_
from hagmil.cli.infer import infer
from hagmil.cli.inspect import inspect
from hagmil.cli.phantom import phantom
from hagmil.cli.split import split
from hagmil.cli.train import train
from hagmil.cli.verify import verify

app = typer.Typer(
    name="hagmil",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name, _command in (
    ("infer", infer),
    ("demo", demo),
    ("bench", bench),
    ("doctor", doctor),
    ("phantom", phantom),
    ("export-backbone", export_backbone),
    ("extract", extract),
    ("split", split),
    ("train", train),
    ("import", import_),
    ("export", export),
    ("verify", verify),
    ("inspect", inspect),
    ("eval", evaluate),
):
    app.command(_name)(accept_verbose(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hagmil {__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbose: common.Verbose = False,
    version: Annotated[  # noqa: ARG001 - used by the callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hierarchical multiple-instance learning on whole-slide images, from training to deployment.

    Exit codes: 0 done; 2 wrong usage or configuration; 3 finished, but some slides were rejected or failed;
    4 the model or bundle is unusable; 5 the environment lacks something that was asked for; 6 stopped by a signal,
    can be resumed.
    """
    configure_logging(verbose=verbose)
