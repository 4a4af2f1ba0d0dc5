"""The recipes are complete, and the commands in their opening lines are valid and fit the recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from hagmil.cli.app import app
from hagmil.trainer.config.sections import DataConfig
from hagmil.trainer.config.training import (
    RECIPES,
    HagMilConfig,
    HmilTrainingConfig,
    load_config,
    parse_config,
    recipe_names,
)
from hagmil.trainer.data.labels import read_labels

_COMMAND = re.compile(r"#\s+hagmil (.+)")


def _header(recipe: str) -> list[str]:
    lines = (RECIPES / f"{recipe}.yaml").read_text().splitlines()
    return lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]


def _commands(recipe: str) -> list[list[str]]:
    """The command lines in the opening comment of a recipe, without ``hagmil``."""
    return [shlex.split(match[1]) for line in _header(recipe) if (match := _COMMAND.fullmatch(line))]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_complete_and_loads_back_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(f"recipe:{name}", ["seed=3"])
    assert config.data.features == tmp_path / "features"
    assert config.seed == 3
    assert parse_config(yaml.safe_load(config.to_yaml()), source="printed") == config


@pytest.mark.parametrize("name", recipe_names())
def test_the_commands_of_a_recipe_parse_and_end_with_its_training(name: str) -> None:
    group: Any = get_command(app)
    commands = _commands(name)
    assert commands[-1] == ["train", f"recipe:{name}"]
    assert {"export-backbone", "extract", "split"} <= {command for command, *_ in commands}
    for command, *arguments in commands:
        context = group.commands[command].make_context(command, list(arguments))
        assert context.params


@pytest.mark.parametrize("name", recipe_names())
def test_the_commands_of_a_recipe_write_what_the_recipe_reads(name: str) -> None:
    data = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["data"]
    arguments = {command: rest for command, *rest in _commands(name)}
    assert arguments["extract"][arguments["extract"].index("--out") + 1] == data["features"]
    assert arguments["split"][0] == data["labels"]
    assert f"{arguments['split'][arguments['split'].index('--out') + 1]}/splits_0.csv" == data["split"]
    backbone = arguments["export-backbone"]
    assert arguments["extract"][arguments["extract"].index("--backbone") + 1] == backbone[backbone.index("--out") + 1]


@pytest.mark.parametrize("name", ["hag-mil-camelyon16", "hmil-bracs"])
def test_the_columns_in_the_header_are_those_of_the_labels(name: str, tmp_path: Path) -> None:
    found = re.search(r"labels\.csv has the columns ([\w, ]+)[.;]", " ".join(_header(name)))
    assert found is not None
    columns = found[1].split(", ")
    (tmp_path / "labels.csv").write_text(",".join(columns) + "\n" + ",".join("abc") + "\n")
    assert read_labels(tmp_path / "labels.csv")["a"].label == "c"


def test_published_recipes_have_the_published_values_and_every_key() -> None:
    camelyon, bracs = load_config("recipe:hag-mil-camelyon16"), load_config("recipe:hmil-bracs")
    assert camelyon.class_names() == ("normal", "tumor")
    assert bracs.class_names() == ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
    hierarchy = bracs.label_hierarchy()
    assert hierarchy is not None
    assert hierarchy.fine_to_coarse == (0, 0, 0, 1, 1, 2, 2)
    for config, defaults in ((camelyon, HagMilConfig), (bracs, HmilTrainingConfig)):
        bare = defaults.model_validate(
            {"kind": config.kind, "data": config.data, "hierarchy": config.hierarchy, "classes": ("normal", "tumor")}
            if config.kind == "hag-mil"
            else {"kind": config.kind, "data": config.data, "hierarchy": config.hierarchy}
        )
        for section in ("model", "loss", "optimiser", "schedule"):
            assert getattr(config, section) == getattr(bare, section)
            written = yaml.safe_load((RECIPES / f"{_recipe_of(config.kind)}.yaml").read_text())[section]
            assert set(written) == set(getattr(config, section).model_dump())


def test_keys_added_later_do_not_change_the_digest_of_a_recipe() -> None:
    expected = "f48f8824a766ff495da2c82c3091473dfef0d684c9ed9b5720835a13b78c7a45"
    assert load_config("recipe:hag-mil-camelyon16").recipe_sha256() == expected
    cascade = [
        f"cascade.{one}" for one in ("keep_random=true", "validation_keeps=[4, all]", "teach=0.3", "teach_from=2")
    ]
    for override in (*cascade, "model.readout=additive"):
        assert load_config("recipe:hag-mil-camelyon16", [override]).recipe_sha256() != expected


def test_published_recipes_give_the_defaults_of_precision_and_memory() -> None:
    keys = {"hag-mil-camelyon16": ("precision", "checkpoint_blocks_above"), "hmil-bracs": ("precision",)}
    for recipe, names in keys.items():
        written = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
        fields = type(load_config(f"recipe:{recipe}")).model_fields
        assert {name: written[name] for name in names} == {name: fields[name].default for name in names}
        assert written["data"]["prefetch"] == DataConfig.model_fields["prefetch"].default


def _recipe_of(kind: str) -> str:
    return "hag-mil-camelyon16" if kind == "hag-mil" else "hmil-bracs"
