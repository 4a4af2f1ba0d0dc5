"""The command line as a whole: help, logging, start-up imports and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from hagmil.runtime.sessions.onnx import available_providers
from tests.cli.terminal import hagmil, hagmil_process
from tests.conftest import REPOSITORY

COMMANDS = (
    "infer",
    "demo",
    "bench",
    "doctor",
    "phantom",
    "export-backbone",
    "extract",
    "split",
    "train",
    "import",
    "export",
    "verify",
    "inspect",
    "eval",
)
HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "pyvips", "openslide", "numba", "h5py", "pydantic", "sklearn")


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = hagmil("--help")
    assert done.returncode == 0
    for word in (*COMMANDS, "Exit codes"):
        assert word in done.stdout


def test_the_application_imports_no_heavy_packages() -> None:
    code = f"import sys, hagmil.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command: str) -> None:
    done = hagmil(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert "--verbose" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_accepts_verbose_before_and_after_its_name(command: str) -> None:
    for arguments in (("-v", command), (command, "-v")):
        done = hagmil(*arguments, "--help")
        assert done.returncode == 0, done.stderr


def test_wrong_usage_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = hagmil_process("infer", tmp_path / "nothing*.svs", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no file matches")
    assert "Traceback" not in done.stderr
    assert hagmil("infer", "--no-such-option").returncode == 2


def test_a_folder_without_a_bundle_exits_with_4(tmp_path: Path) -> None:
    done = hagmil("infer", "slide.svs", "--model", tmp_path, cwd=tmp_path)
    assert done.returncode == 4
    assert "is not a bundle" in done.stderr


def test_doctor_lists_versions_and_missing_packages() -> None:
    done = hagmil("doctor")
    assert done.returncode == 0
    for word in (
        "python",
        "pyvips",
        "onnxruntime",
        "provider cpu",
        "provider cuda",
        "CPUExecutionProvider: the test graph",
    ):
        assert word in done.stdout


def test_doctor_exits_with_5_if_the_given_provider_does_not_start() -> None:
    if "cuda" in available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    done = hagmil("doctor", "--provider", "cuda", "--json")
    assert (done.returncode, done.stderr) == (5, "")
    report = json.loads(done.stdout)
    jsonschema.validate(report, json.loads((REPOSITORY / "docs" / "schemas" / "doctor.schema.json").read_text()))
    (trial,) = report["providers"]
    assert (trial["provider"], trial["state"], trial["code"]) == ("cuda", "missing", "provider_missing")
    assert "hagmil[gpu]" in trial["detail"]
    assert hagmil("doctor", "--provider", "abacus").returncode == 2


def test_a_missing_package_is_named_with_its_install_command(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['hagmil', 'train', 'config.yaml']\n"
        "from hagmil.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith('error: package "torch" is not installed; run: pip install "hagmil[train,export]"')
