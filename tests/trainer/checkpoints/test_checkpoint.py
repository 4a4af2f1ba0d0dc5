from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim import Adam

from hagmil.errors import BundleError
from hagmil.tissue_parameters import TissueParameters
from hagmil.trainer.checkpoints.checkpoint import (
    BEST,
    CARD_NAME,
    WEIGHTS_NAME,
    CheckpointBackbone,
    CheckpointCard,
    CheckpointStage,
    TrainingRecord,
    build_models,
    load_checkpoint,
    read_training_state,
    restore,
    weights_sha256,
    write_checkpoint,
)
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

CONFIG = IatConfig(widths=(8,), heads=2, hidden_width=4, gate_width=3, value_kernel=3)


@pytest.fixture
def models() -> list[IntegratedAttentionTransformer]:
    torch.manual_seed(0)
    return _models()


def _models() -> list[IntegratedAttentionTransformer]:
    return [IntegratedAttentionTransformer(5, 2, CONFIG) for _ in range(2)]


def _card(models: list[IntegratedAttentionTransformer]) -> CheckpointCard:
    record = TrainingRecord(
        versions={},
        seed=0,
        recipe_sha256="",
        labels_sha256="",
        split_sha256="",
        features_sha256="",
        train_slides=1,
        epoch=1,
        validation=None,
    )
    return CheckpointCard(
        hagmil="0",
        kind="hag-mil",
        classes=("normal", "tumour"),
        patch_px=64,
        stages=(
            CheckpointStage(name="low", spacing_um=1.0, keep=7),
            CheckpointStage(name="high", spacing_um=0.5, keep=None),
        ),
        feature_dim=5,
        model=CONFIG,
        backbone=CheckpointBackbone(name="tiny", sha256="b"),
        tissue=TissueParameters(),
        weights_sha256=weights_sha256(models),
        training=record,
    )


@pytest.mark.parametrize("named", ["", WEIGHTS_NAME])
def test_models_are_restored_in_evaluation_mode(
    tmp_path: Path, models: list[IntegratedAttentionTransformer], named: str
) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    checkpoint = load_checkpoint(tmp_path / named)
    assert checkpoint.card == _card(models)
    bag = torch.randn(4, 5)
    for ours, before in zip(build_models(checkpoint), models, strict=True):
        assert not ours.training
        assert torch.equal(ours(bag).logits, before.eval()(bag).logits)


def test_a_run_folder_selects_its_best_checkpoint(tmp_path: Path, models: list[IntegratedAttentionTransformer]) -> None:
    write_checkpoint(tmp_path / BEST, _card(models), models)
    assert load_checkpoint(tmp_path).weights_path == tmp_path / BEST / WEIGHTS_NAME


def test_the_card_is_also_written_as_json(tmp_path: Path, models: list[IntegratedAttentionTransformer]) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    assert CheckpointCard.model_validate(json.loads((tmp_path / CARD_NAME).read_text())) == _card(models)


def test_the_card_in_the_weights_file_is_used_even_if_the_json_differs(
    tmp_path: Path, models: list[IntegratedAttentionTransformer], caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    (tmp_path / CARD_NAME).write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path).card == _card(models)
    assert CARD_NAME in caplog.text
    (tmp_path / CARD_NAME).unlink()
    assert load_checkpoint(tmp_path).card == _card(models)


def test_training_continues_identically_from_restored_optimisers_and_state(
    tmp_path: Path, models: list[IntegratedAttentionTransformer]
) -> None:
    optimisers = [Adam(model.parameters(), lr=0.1) for model in models]
    _step(models, optimisers)
    write_checkpoint(tmp_path, _card(models), models, optimisers=optimisers, training_state='{"epoch": 3}')
    others = _models()
    other_optimisers = [Adam(model.parameters(), lr=0.1) for model in others]
    restore(tmp_path, others, other_optimisers)
    assert read_training_state(tmp_path) == '{"epoch": 3}'
    _step(models, optimisers)
    _step(others, other_optimisers)
    assert weights_sha256(models) == weights_sha256(others)


def test_a_checkpoint_without_state_cannot_be_resumed(
    tmp_path: Path, models: list[IntegratedAttentionTransformer]
) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    with pytest.raises(BundleError, match="resume"):
        read_training_state(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path, models: list[IntegratedAttentionTransformer]) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    path = tmp_path / WEIGHTS_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(BundleError, match="cannot be read"):
        load_checkpoint(tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match="do not have the digest in the card") as caught:
        build_models(load_checkpoint(tmp_path))
    assert caught.value.code == "checkpoint_altered"


def test_other_files_than_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=WEIGHTS_NAME):
        load_checkpoint(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(BundleError, match="not a checkpoint of hagmil"):
        load_checkpoint(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS_NAME, metadata={"checkpoint": "{}"})
    with pytest.raises(BundleError, match="not valid"):
        load_checkpoint(tmp_path)


def test_weights_of_other_models_are_named(tmp_path: Path, models: list[IntegratedAttentionTransformer]) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    with pytest.raises(BundleError, match=r"stages\.2\.blocks"):
        restore(tmp_path, [*_models(), _models()[0]])
    wider = [IntegratedAttentionTransformer(6, 2, CONFIG) for _ in range(2)]
    with pytest.raises(BundleError, match="stage 0"):
        restore(tmp_path, wider)


def test_a_failed_write_keeps_the_old_checkpoint(
    tmp_path: Path, models: list[IntegratedAttentionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    before = load_file(tmp_path / WEIGHTS_NAME)

    def fail(_tensors: object, path: Path, **_metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("hagmil.trainer.checkpoints.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, _card(models), _models())
    after = load_file(tmp_path / WEIGHTS_NAME)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS_NAME, CARD_NAME}


def _step(models: list[IntegratedAttentionTransformer], optimisers: list[Adam]) -> None:
    bag = torch.ones(3, 5)
    for model, optimiser in zip(models, optimisers, strict=True):
        optimiser.zero_grad()
        model.eval()(bag).logits.sum().backward()
        optimiser.step()


def _rewrite(folder: Path, changes: dict[str, object]) -> None:
    """Write a checkpoint again with other values in its card."""
    path = folder / WEIGHTS_NAME
    card = json.loads((folder / CARD_NAME).read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = card
        for parent in parents:
            section = section[parent]
        section[last] = value
    save_file(load_file(path), path, metadata={"checkpoint": json.dumps(card)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_px": 2**63}, "patch_px: 9223372036854775808 is outside 1 to 4,096"),
        ({"feature_dim": 0}, "feature_dim: 0 is outside 1 to 16,384"),
        ({"tissue.median_um": 1e300}, "median_um: 1e\\+300 is outside 0 to 1,000"),
        ({"tissue.spacing_um": float("nan")}, "NaN is not a number of JSON"),
        ({"model.pinv_iterations": 10**9}, "pinv_iterations: 1000000000 is outside 1 to 100"),
        ({"model.widths": [30_000]}, "widths.*30000 is outside 1 to 8,192"),
        ({"training.seed": -1}, "seed: -1 is outside 0 to"),
    ],
)
def test_numbers_of_the_card_have_bounds(
    tmp_path: Path, models: list[IntegratedAttentionTransformer], changes: dict[str, object], message: str
) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    _rewrite(tmp_path, changes)
    with pytest.raises(BundleError, match=message) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint_invalid"


def test_sizes_that_do_not_fit_the_weights_are_refused_before_models_are_built(
    tmp_path: Path, models: list[IntegratedAttentionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, _card(models), models)
    _rewrite(tmp_path, {"model.hidden_width": 8192, "feature_dim": 16_384})
    monkeypatch.setattr(IntegratedAttentionTransformer, "load_state_dict", None)
    with pytest.raises(BundleError, match=r"has the shape .*, but the card says") as caught:
        build_models(load_checkpoint(tmp_path))
    assert caught.value.code == "checkpoint_invalid"


def test_a_damaged_state_of_an_optimiser_is_refused(
    tmp_path: Path, models: list[IntegratedAttentionTransformer]
) -> None:
    optimisers = [Adam(model.parameters()) for model in models]
    _step(models, optimisers)
    write_checkpoint(tmp_path, _card(models), models, optimisers=optimisers)
    path = tmp_path / WEIGHTS_NAME
    tensors = {name.replace("optimisers.0.0.", "optimisers.0.x."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(BundleError, match="the state of an optimiser does not fit"):
        restore(tmp_path, models, optimisers)
