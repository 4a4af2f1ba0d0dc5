"""The pages about the Python API are current, and their code runs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

_PAGE = REPOSITORY / "docs" / "api.md"
_NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "first_slide.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(_NOTEBOOK.read_text())
    return read


def test_the_api_page_is_what_the_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_api_page", REPOSITORY / "scripts" / "make_api_page.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert _PAGE.read_text() == script.page(), "run: python scripts/make_api_page.py"


def test_the_example_of_the_api_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = _PAGE.read_text().partition("## Example")[2].partition("\n## ")[0]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", example, flags=re.DOTALL):
        exec(block, names)
    assert names["again"].prediction == "tumour"
    assert (tmp_path / "results" / "results.csv").is_file()


def test_the_code_of_the_notebook_runs(
    notebook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["result"].prediction == "tumour"
    assert names["missing"].code == "not_found"


def test_the_notebook_has_no_outputs(notebook: dict[str, Any]) -> None:
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
