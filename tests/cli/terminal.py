"""Run hagmil command lines in tests."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from hagmil import cli
from hagmil.cli._signals import SIGNALS


def hagmil(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line in this process.

    Args:
        arguments: the command line after ``hagmil``.
        cwd: working directory of the command.

    Returns:
        The exit code and what the command printed.
    """
    line = ["hagmil", *map(str, arguments)]
    printed, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", line),
        _own_handlers(),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int | None), code
    return subprocess.CompletedProcess(line, code or 0, printed.getvalue(), errors.getvalue())


def hagmil_process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line in a new process and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "hagmil", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Let a command configure signals and logging as in a new process, and restore both afterwards."""
    root, library = logging.getLogger(), logging.getLogger("hagmil")
    handlers, levels = root.handlers[:], (root.level, library.level)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    root.handlers = []
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(levels[0])
        library.setLevel(levels[1])
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
