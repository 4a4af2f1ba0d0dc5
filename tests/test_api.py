"""The Python API: the names that hagmil exports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hagmil
from hagmil.phantom import PhantomSpec, write_phantom
from tests import public_api_script
from tests.conftest import REPOSITORY

_SCRIPT = REPOSITORY / "tests" / "public_api_script.py"
_IMPORT_ONLY = """
import sys
import hagmil
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "pydantic", "h5py", "torch", "onnxruntime"}))
"""
_USE_ALL = """
import sys
import hagmil
for name in hagmil.__all__:
    getattr(hagmil, name)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "onnx", "onnxruntime"}))
"""


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small phantom."""
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    write_phantom(PhantomSpec(seed=0, label="tumour", size_px=1024), path)
    return str(path)


def _output(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_hagmil_loads_no_other_package() -> None:
    assert _output(_IMPORT_ONLY) == ""


def test_public_names_load_neither_torch_nor_onnx_nor_onnxruntime() -> None:
    assert _output(_USE_ALL) == ""


def test_dir_lists_exactly_the_public_names() -> None:
    assert dir(hagmil) == sorted(hagmil.__all__)
    assert sorted(hagmil._MODULE_OF.keys() - set(hagmil.__all__)) == []


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        getattr(hagmil, "load_modle")  # noqa: B009 - a type checker rejects the attribute


def test_the_script_uses_every_public_name() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(_SCRIPT.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hagmil"
    }
    assert used == set(hagmil.__all__)


def test_the_script_passes_mypy_strict() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", str(_SCRIPT)]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_script_predicts_and_reads_its_files_back(slide: str, tmp_path: Path) -> None:
    result = public_api_script.predict(slide, tmp_path)
    assert result.status == "ok"
    assert public_api_script.version() == result.versions["hagmil"]


def test_the_script_extracts_and_runs_a_stage_model(slide: str, tmp_path: Path) -> None:
    features = public_api_script.encode(slide, tmp_path)
    assert [stage.name for stage in features.stages] == ["2um", "1um", "0.5um"]


def test_an_error_has_the_documented_code(tmp_path: Path) -> None:
    assert public_api_script.error_code(str(tmp_path / "missing.svs")) == "not_found"


def test_without_out_no_file_is_written(slide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hagmil.predict_slide(slide)
    hagmil.extract(slide, backbone=hagmil.load_model())
    assert list(tmp_path.iterdir()) == []
