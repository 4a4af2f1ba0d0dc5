"""docs/errors.md lists the error codes of the source with their exit codes."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
import typer

from hagmil import errors
from hagmil.cli.app import app
from hagmil.errors import HagmilError
from tests.conftest import REPOSITORY

_ROW = re.compile(r"^\| `(\w+)` \| ([\d, ]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, HagmilError)
}


def _documented() -> dict[str, set[int]]:
    """Exit codes by error code, from the tables of the page."""
    page = (REPOSITORY / "docs" / "errors.md").read_text()
    rows = _ROW.findall(page)
    assert len({code for code, *_ in rows}) == len(rows), "a code is listed twice"
    return {code: {int(number) for number in exits.split(",")} for code, exits, *_ in rows}


def _codes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each literal error code in a module with the exit code of its class; 3 where it becomes part of a result."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            kind = _CLASSES.get(ast.unparse(node.func).rpartition(".")[2], errors.SlideError)
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        elif isinstance(node, ast.Dict):
            kind = errors.SlideError
            values = [value for key, value in zip(node.keys, node.values, strict=True) if _is_code(key)]
        else:
            continue
        for literal in (part for value in values for part in ast.walk(value)):
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                yield literal.value, kind.exit_code


def _is_code(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and key.value == "code"


@pytest.fixture(scope="module")
def in_source() -> dict[str, set[int]]:
    """Exit codes by error code, from the source."""
    found: dict[str, set[int]] = defaultdict(set)
    for kind in _CLASSES.values():
        found[kind.default_code].add(kind.exit_code)
    for path in (REPOSITORY / "hagmil").rglob("*.py"):
        for code, exit_code in _codes(ast.parse(path.read_text())):
            found[code].add(exit_code)
    return found


def test_every_code_of_the_source_is_documented(in_source: dict[str, set[int]]) -> None:
    assert sorted(in_source.keys() - _documented().keys()) == []


def test_every_documented_code_exists_in_the_source(in_source: dict[str, set[int]]) -> None:
    assert sorted(_documented().keys() - in_source.keys()) == []


def test_documented_exit_codes_are_those_of_the_classes(in_source: dict[str, set[int]]) -> None:
    documented = _documented()
    assert {code: exits for code, exits in in_source.items() if documented.get(code) != exits} == {}


def test_options_in_the_remedies_exist() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    page = (REPOSITORY / "docs" / "errors.md").read_text()
    assert set(re.findall(r"--[a-z][\w-]*", page)) - known - {"--help", "--verbose"} == set()
