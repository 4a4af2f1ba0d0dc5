from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hagmil.errors import BundleError
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.hag_mil_names import our_name, published_to_ours
from tests.trainer.published_models import load_official


@pytest.mark.parametrize(("model", "classes"), [("iat_small", 3), ("iat_full", 2)])
def test_every_published_weight_has_one_place_of_the_same_shape_in_ours(shared: Path, model: str, classes: int) -> None:
    said = load_official(shared / "conformance").said[model]
    widths = tuple(said["config"]["hidden_dims"])
    with torch.device("meta"):
        ours = IntegratedAttentionTransformer(said["config"]["feat_in"], classes, IatConfig(widths=widths))
    expected = {our_name(key): tuple(shape) for key, shape in said["state"].items()}
    assert expected == {name: tuple(weight.shape) for name, weight in ours.state_dict().items()}


def test_weights_that_the_published_model_has_not_are_listed_by_name() -> None:
    state = {"fc5.weight": torch.zeros(1), "fc6.weight": torch.zeros(1), "layers.0.nothing": torch.zeros(1)}
    with pytest.raises(BundleError, match=r"fc6\.weight, layers\.0\.nothing"):
        published_to_ours(state)


def test_a_block_s_weight_is_none_outside_a_block() -> None:
    assert our_name("layer.norm.weight") is None
    assert our_name("layers.2.layer.norm.weight") == "blocks.2.attention_norm.weight"
    assert our_name("layers.2.instance_classifiers.0.weight") is None
