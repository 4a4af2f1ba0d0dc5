"""The HMIL network agrees with the published implementation, and one exported graph is valid for every bag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.export import Dim

from hagmil.spec import stage_outputs
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig, HmilOutput, HmilTrainingOutput
from hagmil.trainer.published.hmil_names import our_hmil_name, published_hmil_name
from tests.trainer.published_models import (
    PublishedReference,
    features,
    load_reference,
    published_hmil_to_ours,
    weights,
)

SALT = "hagmil-hmil"
ATTENTION_TOLERANCE = 1e-5
TENSOR_TOLERANCE = 2e-4
DIM = 12
SMALL = HmilConfig(bottleneck_width=6, fine_width=5, coarse_gate_width=4, fine_gate_width=3)


@pytest.fixture(scope="module")
def official(data_folder: Path) -> PublishedReference:
    return load_reference(data_folder / "conformance")


@pytest.fixture(scope="module")
def published(official: PublishedReference) -> HierarchicalMil:
    model = HierarchicalMil(1024, 3, 7)
    model.load_state_dict(published_hmil_to_ours(weights(official, "hmil", SALT)))
    return model.eval()


@pytest.fixture
def small() -> HierarchicalMil:
    torch.manual_seed(0)
    return HierarchicalMil(DIM, 2, 4, SMALL).eval()


@pytest.mark.parametrize("patches", [5, 300, 1500])
def test_outputs_agree_with_the_published_model(
    official: PublishedReference, published: HierarchicalMil, patches: int
) -> None:
    with torch.inference_mode():
        output = published.forward_training(features(patches, 1024, SALT))
    for name, tensor in output._asdict().items():
        expected = official.outputs[f"hmil_{patches}_{name}"]
        tolerance = ATTENTION_TOLERANCE if name.endswith("attention") else TENSOR_TOLERANCE
        np.testing.assert_allclose(
            tensor.numpy(), expected[0] if name.endswith("logits") else expected, rtol=0, atol=tolerance
        )


def test_every_published_weight_maps_to_one_weight_of_the_same_shape(official: PublishedReference) -> None:
    with torch.device("meta"):
        ours = HierarchicalMil(1024, 3, 7).state_dict()
    published = official.settings["hmil"]["state"]
    assert {our_hmil_name(name): tuple(shape) for name, shape in published.items()} == {
        name: tuple(weight.shape) for name, weight in ours.items()
    }
    assert {published_hmil_name(name) for name in ours} == published.keys()


@pytest.mark.parametrize("patches", [1, 2, 9])
def test_attention_sums_to_one_over_patches_for_each_class(small: HierarchicalMil, patches: int) -> None:
    output: HmilTrainingOutput = small.forward_training(_bag(patches))
    assert output.coarse_logits.shape == (2,)
    assert output.fine_logits.shape == (4,)
    assert output.coarse_attention.shape == (2, patches)
    assert output.fine_attention.shape == (4, patches)
    torch.testing.assert_close(output.coarse_attention.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(output.fine_attention.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(output.fine_embedding.norm(dim=1), torch.ones(4))


def test_permuting_patches_permutes_attention_and_keeps_logits(small: HierarchicalMil) -> None:
    bag = _bag(9)
    there, back = small(bag), small(bag.flip(0))
    torch.testing.assert_close(back.fine_logits, there.fine_logits)
    torch.testing.assert_close(back.fine_attention.flip(1), there.fine_attention)


def test_inference_and_training_forward_give_the_same_outputs(small: HierarchicalMil) -> None:
    deployed: HmilOutput = small(_bag(7))
    trained: HmilTrainingOutput = small.forward_training(_bag(7))
    for name, tensor in deployed._asdict().items():
        assert torch.equal(tensor, getattr(trained, name))


def test_gate_dropout_applies_in_training_only_if_configured() -> None:
    torch.manual_seed(0)
    bag = _bag(50)
    plain = HierarchicalMil(DIM, 2, 4, SMALL).train()
    dropping = HierarchicalMil(DIM, 2, 4, SMALL.model_copy(update={"gate_dropout": 0.5})).train()
    assert torch.equal(plain(bag).fine_logits, plain(bag).fine_logits)
    assert not torch.equal(dropping(bag).fine_logits, dropping(bag).fine_logits)


def test_invalid_sizes_are_rejected() -> None:
    with pytest.raises(ValidationError, match="fine_width"):
        HmilConfig(fine_width=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_outputs_agree_for_any_number_of_patches(small: HierarchicalMil, tmp_path: Path) -> None:
    path = tmp_path / "stage.onnx"
    names = [spec.name for spec in stage_outputs("hmil")]
    program = torch.onnx.export(
        small,
        (_bag(5),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes={"features": {0: Dim("patches", min=1)}},
        input_names=["features"],
        output_names=names,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["patches", DIM]
    assert [output.shape for output in session.get_outputs()] == [[2], [4], [2, "patches"], [4, "patches"]]
    for patches in (1, 2, 7, 300):
        bag = _bag(patches)
        with torch.inference_mode():
            expected = small(bag)
        for tensor, found in zip(expected, session.run(names, {"features": bag.numpy()}), strict=True):
            np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=1e-5)


def _bag(patches: int) -> Tensor:
    return torch.randn(patches, DIM, generator=torch.Generator().manual_seed(patches))
