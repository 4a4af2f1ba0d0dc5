"""The Typer application: every command under its name."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from hagmil._versions import __version__
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

app.command("infer")(infer)
app.command("demo")(demo)
app.command("bench")(bench)
app.command("doctor")(doctor)
app.command("phantom")(phantom)
app.command("export-backbone")(export_backbone)
app.command("extract")(extract)
app.command("split")(split)
app.command("train")(train)
app.command("import")(import_)
app.command("export")(export)
app.command("verify")(verify)
app.command("inspect")(inspect)
app.command("eval")(evaluate)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hagmil {__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the library does.")] = False,
    version: Annotated[  # noqa: ARG001 - Typer calls its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hierarchical multiple-instance learning on whole-slide images, from training to deployment.

    Exit codes: 0 done; 2 wrong usage or configuration; 3 finished, but some slides were rejected or failed;
    4 the model or bundle is unusable; 5 the environment lacks something asked for; 6 stopped, may be resumed.
    """
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.DEBUG if verbose else logging.WARNING)  # a run's log file may want more than it
    logging.basicConfig(
        level=terminal.level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[terminal]
    )
    for noisy in ("PIL", "matplotlib", "numba", "h5py"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("pyvips").setLevel(logging.ERROR)  # what it warns of comes back as our own errors
