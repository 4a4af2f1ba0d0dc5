from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hagmil.errors import UsageError
from hagmil.trainer.config import HagMilConfig, load_config

MINIMAL = """
out: run
data: {features: features, labels: labels.csv, split: split.csv}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "config.yaml"
    path.parent.mkdir()
    path.write_text(MINIMAL)
    return path


def test_the_defaults_are_the_published_recipe(path: Path) -> None:
    config = load_config(path)
    assert config.model.widths == (1024, 1536, 512, 1024)
    assert (config.optimiser.learning_rate, config.optimiser.weight_decay) == (1e-5, 1e-5)
    assert (config.cascade.keep_train, config.cascade.keep_validation) == (7000, 10000)
    assert (config.schedule.max_epochs, config.schedule.patience) == (200, 20)
    assert (config.loss.bag_weight, config.loss.instance_weight, config.loss.k_sample) == (0.5, 0.5, 8)
    assert config.loss.label_smoothing == 0.1


def test_paths_in_the_file_are_seen_from_the_file_and_overrides_from_here(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(path, ["data.labels=other.csv"])
    assert config.out == path.parent / "run"
    assert config.data.split == path.parent / "split.csv"
    assert config.data.labels == tmp_path / "other.csv"


def test_overrides_are_yaml_and_reach_nested_keys(path: Path) -> None:
    config = load_config(
        path,
        ["loss.instance=svm", "model.widths=[16, 32]", "optimiser.learning_rate=1e-3", "classes=[a, b]", "seed=4"],
    )
    assert config.loss.instance == "svm"
    assert config.loss.k_sample == 8
    assert config.model.widths == (16, 32)
    assert config.optimiser.learning_rate == 1e-3
    assert config.classes == ("a", "b")
    assert config.seed == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.k_samples=4", r'unknown key "loss\.k_samples"; did you mean "loss\.k_sample"\?'),
        ("optimizer.learning_rate=1", r'unknown key "optimizer"; did you mean "optimiser"\?'),
        ("model.width=[8]", r'unknown key "model\.width"; did you mean "model\.widths"\?'),
        ("zzz=1", r'unknown key "zzz"$'),
        ("loss.instance=hinge", r"loss\.instance: .*svm"),
        ("model.widths=[12]", r"width 12 must be even and divide into 8 heads"),
        ("device=gpu", "device"),
        ("seed", "form key=value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(path, [override])


def test_all_mistakes_are_told_at_once(path: Path) -> None:
    path.write_text("data: {features: f, labels: l}\nsede: 3\n")
    with pytest.raises(UsageError, match=r'key "data\.split" is missing; unknown key "sede"; did you mean "seed"'):
        load_config(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_configuration_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError, match=r"config\.yaml"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_what_is_written_reads_back_the_same(path: Path) -> None:
    config = load_config(path, ["classes=[x, y, z]", "threads=2"])
    assert HagMilConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_the_recipe_s_digest_knows_settings_and_not_places(path: Path) -> None:
    digest = load_config(path).recipe_sha256()
    assert load_config(path, ["out=elsewhere", "threads=1", "data.labels=x.csv"]).recipe_sha256() == digest
    assert load_config(path, ["seed=1"]).recipe_sha256() != digest
    assert load_config(path, ["loss.k_sample=9"]).recipe_sha256() != digest
