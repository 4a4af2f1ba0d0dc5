from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hagmil.errors import UsageError
from hagmil.trainer.config.training import (
    HagMilConfig,
    HmilTrainingConfig,
    load_config,
    parse_config,
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


def test_paths_are_relative_to_the_file_and_overrides_to_the_working_directory(
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
        ("loss.name=focal", r'unknown key "loss\.name"$'),
        ("learning_rate=1", r'unknown key "learning_rate"; did you mean "optimiser\.learning_rate"\?'),
        ("data.feature=f", r'unknown key "data\.feature"; did you mean "data\.features"\?'),
        ("loss.instance=hinge", r"loss\.instance: .*svm"),
        ("model.widths=[12]", r"width 12 must be even and divide into 8 heads"),
        ("model.widths=[30000]", r"model\.widths\.0: 30000 is outside 1 to 8,192"),
        ("model.widths=[8192, 8192]", r"widths give about 671,088,640 weights; at most 268,435,456"),
        ("model.pinv_iterations=1000000000", r"pinv_iterations: 1000000000 is outside 1 to 100"),
        ("model.gate_dropout=.nan", r"gate_dropout: nan is outside 0 to 0\.999"),
        ("loss.bag_weight=.inf", r"bag_weight: inf is outside 0 to 1,000,000"),
        ("optimiser.learning_rate=1e308", r"learning_rate: 1e\+308 is outside 1e-12 to 10"),
        ("cascade.keep_train=9223372036854775808", r"keep_train: 9223372036854775808 is outside 1 to 10,000,000"),
        ("seed=18446744073709551616", r"seed: 18446744073709551616 is outside 0 to 9,223,372,036,854,775,807"),
        ("device=gpu", "device"),
        ("seed", "form key=value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_invalid_overrides_are_refused(path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(path, [override])


def test_all_mistakes_are_reported_at_once(path: Path) -> None:
    path.write_text("data: {features: f, labels: l}\nsede: 3\n")
    with pytest.raises(UsageError, match=r'key "data\.split" is missing; unknown key "sede"; did you mean "seed"'):
        load_config(path)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "a: [", "just words", "seed: 1" + "0" * 5000, "a: !!timestamp b", "[" * 5000]
)
def test_a_file_without_a_configuration_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError, match=r"config\.yaml"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_a_written_configuration_loads_back_the_same(path: Path) -> None:
    config = load_config(path, ["classes=[x, y, z]", "threads=2"])
    assert HagMilConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_the_digest_depends_on_settings_and_not_on_paths(path: Path) -> None:
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


def test_the_kind_selects_the_class_of_the_configuration(path: Path, hmil_path: Path) -> None:
    assert isinstance(load_config(path), HagMilConfig)
    config = load_config(hmil_path)
    assert isinstance(config, HmilTrainingConfig)
    assert config.class_names() == ("a", "b", "c")
    assert config.label_hierarchy().fine_to_coarse == (0, 1, 1)
    with pytest.raises(UsageError, match="kind is 'clam'; it must be one of hag-mil, hmil"):
        load_config(path, ["kind=clam"])


def test_the_defaults_of_hmil_are_the_published_recipe(hmil_path: Path) -> None:
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
        ("cascade.keep_train=4", r'unknown key "cascade"$'),
        ("hierarchy.fine=[a, b, c, d]", "gives no coarse class for the fine class d"),
        ("hierarchy.fine=[a, b]", "names c, which is not in fine"),
        ("hierarchy.fine_to_coarse.a=begnin", "maps to begnin, which is not in coarse"),
        ("hierarchy.fine_to_coarse.a=malignant", "no fine class belongs to the coarse class benign"),
        ("hierarchy.coarse=[benign, malignant, benign]", "a class is named twice: benign"),
        ("loss={coarse: 0, fine: 0, bag_alignment: 0}", "no other loss uses the logits"),
    ],
)
def test_invalid_overrides_of_hmil_are_refused(hmil_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(hmil_path, [override])


def test_hmil_without_a_hierarchy_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match='key "hierarchy" is missing'):
        load_config(path, ["kind=hmil"])


def test_the_digest_does_not_depend_on_settings_that_give_the_same_weights(path: Path) -> None:
    digest = load_config(path).recipe_sha256()
    assert load_config(path, ["checkpoint_blocks_above=null", "data.prefetch=0"]).recipe_sha256() == digest
    assert load_config(path, ["precision=bf16"]).recipe_sha256() != digest


def test_an_unknown_recipe_suggests_a_similar_name() -> None:
    with pytest.raises(UsageError, match='no recipe "hmil-brcas"; did you mean "hmil-bracs"'):
        load_config("recipe:hmil-brcas")


def test_an_unknown_recipe_without_a_similar_name_lists_all_recipes() -> None:
    with pytest.raises(UsageError, match="the recipes are abmil, clam-mb, clam-sb, "):
        load_config("recipe:clam")


def test_a_written_configuration_with_relative_paths_loads_from_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"features": "demo/features", "labels": "demo/labels.csv", "split": Path("demo/split.csv")}
    config = parse_config({"out": "demo/run", "data": data}, source="test")
    assert config.data.split == tmp_path / "demo" / "split.csv"
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "demo" / "run" / "config.yaml") == config
