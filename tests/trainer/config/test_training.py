from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hagmil.errors import UsageError
from hagmil.trainer.config.sections import DataConfig
from hagmil.trainer.config.training import (
    RECIPES,
    HagMilConfig,
    HmilTrainingConfig,
    load_config,
    parse_config,
    recipe_names,
)

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


HMIL = """
kind: hmil
data: {features: features, labels: labels.csv, split: split.csv}
hierarchy:
  coarse: [benign, malignant]
  fine: [a, b, c]
  fine_to_coarse: {a: benign, b: malignant, c: malignant}
"""


@pytest.fixture
def hmil_path(tmp_path: Path) -> Path:
    path = tmp_path / "hmil.yaml"
    path.write_text(HMIL)
    return path


def test_the_kind_says_which_configuration_it_is(path: Path, hmil_path: Path) -> None:
    assert isinstance(load_config(path), HagMilConfig)
    config = load_config(hmil_path)
    assert isinstance(config, HmilTrainingConfig)
    assert config.class_names() == ("a", "b", "c")
    assert config.label_hierarchy().fine_to_coarse == (0, 1, 1)
    with pytest.raises(UsageError, match="kind: 'clam' is none of hag-mil, hmil"):
        load_config(path, ["kind=clam"])


def test_hmil_s_defaults_are_the_published_recipe(hmil_path: Path) -> None:
    config = load_config(hmil_path)
    assert (config.optimiser.learning_rate, config.schedule.batch_size, config.schedule.max_epochs) == (1e-4, 64, 200)
    assert config.schedule.plateau is not None
    assert (config.schedule.plateau.factor, config.schedule.plateau.patience) == (0.1, 5)
    assert config.schedule.patience is None
    assert set(config.loss.model_dump().values()) == {1.0, 0.1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.instance_aligment=0", r'did you mean "loss\.instance_alignment"\?'),
        ("schedule.plateau.facter=0.5", r'did you mean "schedule\.plateau\.factor"\?'),
        ("cascade.keep_train=4", r'unknown key "cascade"'),
        ("hierarchy.fine=[a, b, c, d]", "gives no coarse class for the fine class d"),
        ("hierarchy.fine=[a, b]", "names c, which fine does not"),
        ("hierarchy.fine_to_coarse.a=begnin", "leads to begnin, which coarse does not name"),
        ("hierarchy.fine_to_coarse.a=malignant", "no fine class belongs to the coarse class benign"),
        ("hierarchy.coarse=[benign, malignant, benign]", "a class is named twice: benign"),
        ("loss={coarse: 0, fine: 0, bag_alignment: 0}", "nothing else sees the labels"),
    ],
)
def test_what_cannot_be_meant_of_hmil_is_named(hmil_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(hmil_path, [override])


def test_hmil_without_a_hierarchy_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match='key "hierarchy" is missing'):
        load_config(path, ["kind=hmil"])


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_whole_and_reads_back_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(f"recipe:{name}", ["seed=3"])
    assert config.data.features == tmp_path / "features"
    assert config.seed == 3
    assert parse_config(yaml.safe_load(config.to_yaml()), source="printed") == config


def test_the_published_recipes_are_what_was_published_and_spell_out_every_key() -> None:
    camelyon, bracs = load_config("recipe:hag-mil-camelyon16"), load_config("recipe:hmil-bracs")
    assert camelyon.class_names() == ("normal", "tumor")
    assert bracs.class_names() == ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
    assert bracs.label_hierarchy().fine_to_coarse == (0, 0, 0, 1, 1, 2, 2)
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


def test_the_published_recipes_spell_out_the_keys_of_scale_and_say_their_defaults() -> None:
    keys = {"hag-mil-camelyon16": ("precision", "checkpoint_blocks_above"), "hmil-bracs": ("precision",)}
    for recipe, names in keys.items():
        written = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
        fields = type(load_config(f"recipe:{recipe}")).model_fields
        assert {name: written[name] for name in names} == {name: fields[name].default for name in names}
        assert written["data"]["prefetch"] == DataConfig.model_fields["prefetch"].default


def test_what_only_another_way_to_the_same_weights_is_no_part_of_the_recipe(path: Path) -> None:
    digest = load_config(path).recipe_sha256()
    assert load_config(path, ["checkpoint_blocks_above=null", "data.prefetch=0"]).recipe_sha256() == digest
    assert load_config(path, ["precision=bf16"]).recipe_sha256() != digest


def test_a_recipe_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='no recipe "hmil-brcas"; did you mean "hmil-bracs"'):
        load_config("recipe:hmil-brcas")


def _recipe_of(kind: str) -> str:
    return "hag-mil-camelyon16" if kind == "hag-mil" else "hmil-bracs"
