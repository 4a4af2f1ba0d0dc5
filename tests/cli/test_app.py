"""The command line answers quickly, and turns errors into one line and an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.terminal import hagmil

COMMANDS = (
    "infer",
    "demo",
    "bench",
    "doctor",
    "phantom",
    "export-backbone",
    "extract",
    "train",
    "import",
    "export",
    "verify",
    "inspect",
)
HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "pyvips", "openslide", "numba", "h5py", "pydantic", "sklearn")


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = hagmil("--help")
    assert done.returncode == 0
    for word in (*COMMANDS, "Exit codes"):
        assert word in done.stdout


def test_the_application_loads_nothing_heavy() -> None:
    code = f"import sys, hagmil.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_explains_itself() -> None:
    for command in COMMANDS:
        done = hagmil(command, "--help")
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = hagmil("infer", tmp_path / "nothing*.svs", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing matches")
    assert "Traceback" not in done.stderr
    assert hagmil("infer", "--no-such-option").returncode == 2


def test_a_folder_that_is_no_bundle_is_exit_4(tmp_path: Path) -> None:
    done = hagmil("infer", "slide.svs", "--model", tmp_path, cwd=tmp_path)
    assert done.returncode == 4
    assert "is not a bundle" in done.stderr


def test_doctor_tells_versions_and_what_is_missing() -> None:
    done = hagmil("doctor")
    assert done.returncode == 0
    for word in ("python", "pyvips", "onnxruntime", "provider cpu", "provider cuda", "hagmil[gpu]"):
        assert word in done.stdout


def test_a_command_whose_packages_are_missing_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['hagmil', 'train', 'config.yaml']\n"
        "from hagmil.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith('error: package "torch" is not installed; run: pip install "hagmil[train,export]"')
