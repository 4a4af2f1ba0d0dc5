"""SIGINT and SIGTERM at any moment end a command with exit code 6 and without temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hagmil._files import OutputFolder, atomic_path, temporary_folder
from tests.faults.conftest import Commands

AT_IMPORT = """
import os, signal, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Signal())
"""
IN_CALL = """
import os, signal, sys
import {module} as module
function, calls = module.{function}, []
def wrapped(*arguments, **options):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.{signal})
    return function(*arguments, **options)
module.{function} = wrapped
"""
RUN = "sys.argv = ['hagmil', *sys.argv[1:]]\nfrom hagmil.cli import main\nmain()\n"


def _run(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code + RUN, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".part" in path.name or path.name.startswith("hagmil-")]


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ("infer", AT_IMPORT.format(module="hagmil.cli.app", signal="SIGINT")),
        ("infer", AT_IMPORT.format(module="numpy", signal="SIGTERM")),
        ("extract", AT_IMPORT.format(module="onnxruntime", signal="SIGINT")),
        ("train", AT_IMPORT.format(module="torch", signal="SIGTERM")),
        ("export", AT_IMPORT.format(module="onnx", signal="SIGINT")),
        ("extract", IN_CALL.format(module="hagmil.runtime.extract", function="_encode_bag", signal="SIGTERM")),
        ("phantom", IN_CALL.format(module="hagmil.phantom.files", function="_PngReader.read", signal="SIGINT")),
        ("phantom", IN_CALL.format(module="hagmil.phantom.files", function="Painter.paint", signal="SIGTERM")),
    ],
)
def test_a_signal_at_any_moment_ends_a_command_with_6(
    command: str, moment: str, commands: Commands, tmp_path: Path
) -> None:
    done = _run(moment, *commands.arguments(command, tmp_path / "out"), folder=tmp_path)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: stopped" in done.stderr.splitlines()[-1]
    assert _leftovers(tmp_path) == []


def test_a_signal_during_a_long_function_in_c_ends_the_command_with_6(tmp_path: Path) -> None:
    code = (
        "import ctypes, os, signal, sys, threading\n"
        "import hagmil._files, hagmil.runtime.doctor.report as module\n"
        "def block(*_arguments):\n"
        "    with hagmil._files.temporary_folder('test') as folder:\n"
        "        with hagmil._files.atomic_path(folder.parent / 'file'):\n"
        "            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "            while True:\n"
        "                try:\n"
        "                    ctypes.CDLL(None).usleep(60_000_000)\n"
        "                except BaseException:\n"
        "                    pass\n"
        "module.diagnose = block\n"
    )
    done = _run(code, "doctor", folder=tmp_path)
    assert done.returncode == 6, done.stderr
    assert "error: stopped" in done.stderr
    assert _leftovers(tmp_path) == []


def test_temporary_files_of_a_killed_run_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = tmp_path / "out"
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom hagmil._files import *\n"
        f"with temporary_folder('test') as folder, sibling_folder(Path({str(out)!r}, 'bundle')) as other:\n"
        f"    with atomic_path(Path({str(out)!r}, 'slide', 'file.txt')) as temporary:\n"
        "        (folder / 'a').touch(), (other / 'b').touch(), print('ready', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out.mkdir()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert len(_leftovers(tmp_path)) == 3
    with atomic_path(out / "slide" / "mine.txt") as mine, temporary_folder("test") as folder:
        OutputFolder.open(out, "*")
        assert sorted(_leftovers(tmp_path)) == sorted([folder.name, mine.name])
