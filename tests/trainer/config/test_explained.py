"""--print-config prints YAML that explains every key and loads back to the same configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from hagmil.cli.app import app
from hagmil.trainer.config.explained import LINE_LENGTH, explained_yaml, explanation, section_of
from hagmil.trainer.config.training import (
    config_class,
    default_config,
    load_config,
    recipe_names,
)
from hagmil.trainer.models.registry import kind_names


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key -> explanation, for all keys of a model and its sections."""
    for name, field in model.model_fields.items():
        yield prefix + name, explanation(field)
        section = section_of(field)
        if section is not None:
            yield from _fields(section, f"{prefix}{name}.")


@pytest.mark.parametrize("model", [config_class(kind) for kind in kind_names()])
def test_every_key_has_an_explanation(model: type[BaseModel]) -> None:
    assert [key for key, text in _fields(model) if not text] == []


@pytest.mark.parametrize("recipe", [None, *(f"recipe:{name}" for name in recipe_names())])
def test_the_printed_configuration_loads_back_the_same(
    recipe: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", *([recipe] if recipe else []), "--set", "seed=5", "--print-config"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (tmp_path / "elsewhere").mkdir()
    printed = tmp_path / "elsewhere" / "config.yaml"
    printed.write_text(done.stdout)
    expected = default_config(["seed=5"]) if recipe is None else load_config(recipe, ["seed=5"])
    assert load_config(printed) == expected
    assert expected.seed == 5
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}


def test_each_key_follows_its_explanation() -> None:
    text = explained_yaml(default_config())
    lines = text.splitlines()
    assert max(map(len, lines)) <= LINE_LENGTH
    place = lines.index("  k_sample: 8")
    assert lines[place - 1] == (
        "  # number of patches with the highest, and with the lowest attention, for the instance loss"
    )
    for line, before in zip(lines[1:], lines, strict=False):
        if not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("# "), line


def test_the_keys_of_a_section_that_is_null_are_comments() -> None:
    lines = explained_yaml(default_config()).splitlines()
    place = lines.index("hierarchy: null")
    assert lines[place + 1].startswith("#   coarse: coarse classes")
    assert yaml.safe_load("\n".join(lines))["hierarchy"] is None


def test_training_without_a_configuration_is_refused() -> None:
    done = CliRunner().invoke(app, ["train"])
    assert done.exit_code == 2
    assert "recipe:NAME" in done.output
