"""hagmil as a person runs it: a process of its own, its exit code and what it printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def hagmil(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "hagmil", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
