"""Output folders that cannot be written, and disks that become full during a run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from hagmil._files import OutputFolder
from hagmil.export import pipeline
from hagmil.features import read_features
from hagmil.runtime.results.attention import read_attention
from hagmil.runtime.results.result import read_result
from tests.cli.terminal import hagmil
from tests.faults.conftest import NAMES, Commands, free_bytes
from tests.runtime.small_bundle import stage_graph


def _fill(disk: Path, keep_bytes: int) -> None:
    (disk / "ballast").write_bytes(bytes(max(free_bytes(disk) - keep_bytes, 0)))


def _check_error(done: subprocess.CompletedProcess[str], words: str) -> None:
    """Check the exit code and the message, which is the last line."""
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert words in done.stderr.splitlines()[-1]


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if ".part" in path.name]


def _after_the_check(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do something after a command has found its output folder writable."""
    check = OutputFolder.open

    def _open(path: Path, *subfolders: str) -> OutputFolder:
        folder = check(path, *subfolders)
        action()
        return folder

    monkeypatch.setattr(OutputFolder, "open", _open)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_folder_that_cannot_be_made_ends_a_command_before_its_work(
    name: str, commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        done = hagmil(*commands.arguments(name, out))
        _check_error(done, "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_ends_a_command_before_its_work(name: str, commands: Commands, small_disk: Path) -> None:
    _fill(small_disk, 1 << 16)
    done = hagmil(*commands.arguments(name, small_disk / "out"))
    _check_error(done, "no space left")
    assert _leftovers(small_disk) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_becomes_full_ends_a_command_without_temporary_files(
    name: str, commands: Commands, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "stage_graph", lambda *_arguments: stage_graph())
    _after_the_check(monkeypatch, lambda: _fill(small_disk, 0))
    done = hagmil(*commands.arguments(name, small_disk / "out"))
    _check_error(done, "no space left")
    assert _leftovers(small_disk) == []


def test_slides_that_were_finished_before_the_disk_was_full_are_readable(
    commands: Commands, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hagmil(*commands.arguments("infer", tmp_path / "out")).returncode == 0
    used = sum(path.stat().st_size for path in (tmp_path / "out" / "tissue").iterdir())
    _after_the_check(monkeypatch, lambda: _fill(small_disk, used + (1 << 16)))
    out = small_disk / "out"
    assert hagmil(*commands.arguments("infer", out)).returncode == 5
    assert read_result(out / "tissue").status == "ok"
    assert len(read_attention(out / "tissue")) == 3
    assert (out / "results.csv").read_text().count("\n") == 2
    monkeypatch.undo()
    (small_disk / "ballast").unlink()
    assert hagmil(*commands.arguments("infer", out), "--resume").returncode == 0
    assert read_result(out / "second").status == "ok"


def test_features_that_were_finished_before_the_disk_was_full_are_readable(
    commands: Commands, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hagmil(*commands.arguments("extract", tmp_path / "out")).returncode == 0
    used = (tmp_path / "out" / "tissue.h5").stat().st_size
    _after_the_check(monkeypatch, lambda: _fill(small_disk, used + (1 << 14)))
    out = small_disk / "out"
    assert hagmil(*commands.arguments("extract", out)).returncode == 5
    assert [path.name for path in out.iterdir()] == ["tissue.h5"]
    assert len(read_features(out / "tissue.h5").stages) == 2


@pytest.mark.parametrize("name", ["infer", "extract", "phantom"])
def test_an_output_folder_that_vanishes_ends_the_run(
    name: str, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _after_the_check(monkeypatch, lambda: shutil.move(out, tmp_path / "moved"))
    done = hagmil(*commands.arguments(name, out))
    _check_error(done, "deleted, replaced or disconnected")
    assert not out.exists()


def test_the_hdf5_library_never_writes_to_the_disk(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may crash the process when it closes a file on a full disk."""
    opened: list[object] = []
    create = h5py.File.__init__

    def _init(file: h5py.File, name: object, mode: str = "r", **options: object) -> None:
        opened.extend([name] if mode != "r" else [])
        create(file, name, mode, **options)

    monkeypatch.setattr(h5py.File, "__init__", _init)
    for name in ("infer", "extract"):
        assert hagmil(*commands.arguments(name, tmp_path / name)).returncode == 0
    assert len(opened) == 4
    assert not any(isinstance(name, str | Path) for name in opened)
