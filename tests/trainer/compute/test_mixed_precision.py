"""Training in bfloat16 with evaluation in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hagmil.errors import EnvironmentLacks, UsageError
from hagmil.trainer.checkpoints.checkpoint import BEST, LAST, build_models, load_checkpoint
from hagmil.trainer.compute.mixed_precision import autocast, check_precision, in_float32
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.cohort import open_training_cohort
from hagmil.trainer.methods.registry import new_method
from hagmil.trainer.models.hmil import HmilOutput
from hagmil.trainer.training.loop import train
from hagmil.trainer.training.validation import evaluate
from tests.trainer.cohorts import configured, write_cohort
from tests.trainer.hierarchy_cohorts import write_hierarchy_cohort

CPU = torch.device("cpu")


@pytest.fixture(params=["hag-mil", "hmil"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    make = write_cohort if request.param == "hag-mil" else write_hierarchy_cohort
    return make(tmp_path, parts={"train": 4, "val": 2, "test": 0})


def test_mixed_precision_multiplies_in_bfloat16_and_passes_float32_to_the_losses() -> None:
    layer = torch.nn.Linear(3, 2)
    with autocast("bf16", CPU):
        product = layer(torch.ones(1, 3))
    assert product.dtype == torch.bfloat16
    output = in_float32(HmilOutput(product, product, product, product))
    assert {tensor.dtype for tensor in output} == {torch.float32}
    output.fine_logits.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_fp32_disables_autocast() -> None:
    with autocast("fp32", CPU):
        assert torch.nn.Linear(3, 2)(torch.ones(1, 3)).dtype == torch.float32


def test_training_in_bf16_is_close_to_fp32_but_not_equal(tree: dict[str, Any]) -> None:
    out = Path(tree["out"])
    exact, rough = (configured(tree, out=str(out / name), precision=name) for name in ("fp32", "bf16"))
    expected, found = train(exact), train(rough)
    assert not torch.equal(_weights(exact), _weights(rough))
    assert _weights(rough).dtype == torch.float32
    assert found.validation.loss == pytest.approx(expected.validation.loss, rel=0.05)


def test_validation_is_in_float32_for_every_training_precision(tree: dict[str, Any]) -> None:
    rough = configured(tree, precision="bf16", schedule={"max_epochs": 1})
    train(rough)
    exact = configured(tree, precision="fp32", schedule={"max_epochs": 1}, out=str(Path(tree["out"]) / "again"))
    cohort = open_training_cohort(exact)
    method = new_method(exact, cohort)
    for model, weights in zip(method.models, build_models(load_checkpoint(rough.out / BEST)), strict=True):
        model.load_state_dict(weights.state_dict())
    again = evaluate(
        method,
        cohort.val,
        len(cohort.classes),
        hierarchy=cohort.hierarchy,
        empty_slides=0,
        after_slide=lambda _: None,
    )
    assert load_checkpoint(rough.out).card.training.validation == again.metrics


def test_precision_is_part_of_the_recipe(tree: dict[str, Any]) -> None:
    config = configured(tree, schedule={"max_epochs": 1})
    train(config)
    with pytest.raises(UsageError, match="a different precision"):
        train(configured(tree, schedule={"max_epochs": 1}, precision="bf16"), resume=True)
    assert config.recipe_sha256() != config.model_copy(update={"precision": "bf16"}).recipe_sha256()
    with pytest.raises(UsageError, match="precision"):
        configured(tree, precision="fp16")


def test_a_device_without_bfloat16_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Old GPU")
    check_precision("bf16", CPU)
    check_precision("fp32", torch.device("cuda"))
    with pytest.raises(EnvironmentLacks, match='"Old GPU" has no bfloat16'):
        check_precision("bf16", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_training_in_bf16_runs_on_a_gpu(tree: dict[str, Any]) -> None:
    config = configured(tree, device="cuda", precision="bf16")
    assert train(config).validation.loss is not None
    assert bool(torch.isfinite(_weights(config)).all())


def _weights(config: TrainingConfig) -> torch.Tensor:
    (first, *_) = build_models(load_checkpoint(config.out / LAST))
    return torch.nn.utils.parameters_to_vector(first.parameters()).detach()
