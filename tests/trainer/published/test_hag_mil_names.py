from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.hag_mil_names import our_name, published_name
from tests.trainer.published_models import load_reference


@pytest.mark.parametrize(("model", "classes"), [("iat_small", 3), ("iat_full", 2)])
def test_names_map_one_to_one_onto_our_weights_of_the_same_shape(data_folder: Path, model: str, classes: int) -> None:
    published = load_reference(data_folder / "conformance").settings[model]
    widths = tuple(published["config"]["hidden_dims"])
    with torch.device("meta"):
        ours = IntegratedAttentionTransformer(published["config"]["feat_in"], classes, IatConfig(widths=widths))
    expected = {our_name(key): tuple(shape) for key, shape in published["state"].items()}
    assert expected == {name: tuple(weight.shape) for name, weight in ours.state_dict().items()}
    assert {published_name(name) for name in ours.state_dict()} == published["state"].keys()


def test_a_weight_of_a_block_is_unknown_outside_a_block() -> None:
    assert our_name("layer.norm.weight") is None
    assert our_name("layers.2.layer.norm.weight") == "blocks.2.attention_norm.weight"
    assert our_name("layers.2.instance_classifiers.0.weight") is None
