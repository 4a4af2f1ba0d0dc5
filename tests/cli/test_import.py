"""hagmil import and hagmil train --print-config on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from tests.cli.terminal import hagmil


def _write_hmil(path: Path) -> None:
    shapes = {
        "feature_extractor.0": (4, 6),
        "feature_extractor.2": (6, 4),
        "feature_reducer.0": (5, 6),
        "coarse_attention.0.attention_a.0": (3, 6),
        "coarse_attention.0.attention_b.0": (3, 6),
        "coarse_attention.0.attention_c": (2, 3),
        "fine_attention.0.attention_a.0": (2, 5),
        "fine_attention.0.attention_b.0": (2, 5),
        "fine_attention.0.attention_c": (3, 2),
        "coarse_classifier": (1, 6),
        "fine_classifier": (1, 5),
    }
    state = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    torch.save(state | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}, path)


def test_options_supply_what_the_file_lacks(tmp_path: Path) -> None:
    _write_hmil(tmp_path / "best.pth")
    options = ("--fine-to-coarse", "a:x,b:x,c:y", "--spacing-um", "0.5", "--patch-px", "128")
    done = hagmil("import", tmp_path / "best.pth", "--kind", "hmil", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "hmil: a, b, c; 0.5 um/px; patches of 128 px" in done.stdout
    card = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert card["hierarchy"] == {"coarse": ["x", "y"], "fine": ["a", "b", "c"], "fine_to_coarse": [0, 0, 1]}
    assert (card["training"], card["backbone"], card["imported"]["source_name"]) == (None, None, "best.pth")


def test_a_missing_hierarchy_exits_with_2_and_names_its_option(tmp_path: Path) -> None:
    _write_hmil(tmp_path / "best.pth")
    done = hagmil("import", tmp_path / "best.pth", "--kind", "hmil", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--fine-to-coarse" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_other_method_exits_with_4_and_lists_unknown_names(tmp_path: Path) -> None:
    _write_hmil(tmp_path / "best.pth")
    done = hagmil("import", tmp_path / "best.pth", "--kind", "hag-mil", "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "feature_extractor.0.weight" in done.stderr


def test_print_config_prints_a_complete_recipe_and_does_not_train(tmp_path: Path) -> None:
    done = hagmil("train", "recipe:hmil-bracs", "--set", "seed=5", "--print-config", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert (printed["kind"], printed["seed"], printed["schedule"]["batch_size"]) == ("hmil", 5, 64)
    assert printed["data"]["features"] == str(tmp_path / "features")
    assert list(tmp_path.iterdir()) == []
