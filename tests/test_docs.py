"""Paths, modules, links and commands in the documentation exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from hagmil.cli.app import app
from hagmil.trainer.models.entry_points import HEADS, LOSSES
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
_FOLDERS = "hagmil|tests|docs|benchmarks|scripts"
_PARTS = "runtime|trainer|export|workflows|reports|phantom|cli"
_PATH = re.compile(rf"(?<![\w/.-])((?:{_FOLDERS}|{_PARTS})/[\w./-]*\w)")
_MODULE = re.compile(rf"(?<![\w./-])((?:hagmil|benchmarks|(?:{_PARTS}))(?:\.\w+)+)")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]+)?\)")


def _names(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def _exists(path: str) -> bool:
    """Whether a path exists, relative to the repository or to the package."""
    return any((root / path).exists() for root in (REPOSITORY, REPOSITORY / "hagmil"))


def _is_module(name: str) -> bool:
    """Whether a dotted name is a module, or a definition in one."""
    path = name.replace(".", "/")
    parent, _, last = path.rpartition("/")
    for root in (REPOSITORY, REPOSITORY / "hagmil"):
        if (root / path).is_dir() or (root / f"{path}.py").is_file():
            return True
        for module in (root / f"{parent}.py", root / parent / "__init__.py"):
            if module.is_file() and re.search(rf"\b{last}\b", module.read_text()):
                return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_source_paths_on_a_page_exist(page: Path) -> None:
    assert sorted({path for path in _PATH.findall(page.read_text()) if not _exists(path)}) == []


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_modules_on_a_page_exist(page: Path) -> None:
    names = set(_MODULE.findall(page.read_text())) - {HEADS, LOSSES}  # groups of entry points
    assert sorted(name for name in names if not _is_module(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_links_on_a_page_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target, heading in _LINK.findall(page.read_text()):
        path = page.parent / target
        if not path.exists() or (heading and heading[1:] not in _headings(path)):
            broken.append(target + heading)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_commands_on_a_page_have_these_options(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    unknown = []
    for line in _command_lines(page.read_text()):
        name, _, rest = line.partition(" #")[0].partition(" ")
        known = {option for parameter in commands[name].params for option in parameter.opts} if name in commands else ()
        unknown += [f"{name} {option}" for option in re.findall(r"--[a-z][\w-]*", rest) if option not in known]
        unknown += [] if name in commands else [name]
    assert unknown == []


def _command_lines(text: str) -> list[str]:
    """Commands of hagmil in code blocks and code spans, without the word hagmil; ``hagmil COMMAND`` is left out."""
    text = text.replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    spans = re.findall(r"`hagmil ([a-z][^`]*)`", text.replace("\n", " "))
    return (
        re.findall(r"^(?:\$ )?hagmil ([a-z].+)$", blocks, flags=re.MULTILINE)
        + spans
        + re.findall(r"^    hagmil ([a-z].+)$", text, flags=re.MULTILINE)
    )


def _headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
