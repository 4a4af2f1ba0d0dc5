"""Heads of other projects reproduce the outputs of the published code, and are read in every layout."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hagmil.errors import BundleError, UsageError
from hagmil.trainer.checkpoints.checkpoint import build_models, load_checkpoint
from hagmil.trainer.losses.heads import ClamLossConfig, DsmilLossConfig, clam_loss, dsmil_loss
from hagmil.trainer.losses.instance import InstanceLossKind, bag_loss
from hagmil.trainer.models.dsmil import DsmilOutput
from hagmil.trainer.published.heads.found_head import FoundHead, HeadOptions
from hagmil.trainer.published.heads.recognise import build_head, import_head
from hagmil.trainer.published.import_checkpoint import ImportOptions, import_checkpoint
from tests.conftest import REPOSITORY
from tests.trainer.published_heads import in_layout, load_heads
from tests.trainer.published_models import features

TENSOR_TOLERANCE, LOSS_TOLERANCE = 2e-4, 1e-4
BAGS = (1, 2, 5, 16, 17, 200)
HEADS = load_heads(REPOSITORY / "tests" / "data" / "conformance")
KINDS = {
    "clam_sb": "clam-sb", "clam_mb": "clam-mb", "clam_mil_fc": "max", "clam_mil_fc_mc": "max", "transmil": "transmil",
    "dsmil": "dsmil", "admil_plain": "abmil", "admil_gated": "abmil", "millab_abmil": "abmil",
    "millab_clam": "clam-sb", "millab_transmil": "transmil", "millab_dsmil": "dsmil", "millab_transformer": "stamp",
    "stamp_vit": "stamp", "stamp_transmil": "transmil", "stamp_mlp": "mean", "stamp_linear": "mean",
}  # fmt: skip
SMALL = [name for name in HEADS.configs if "_d64" in name]
REDUCED = ["clam_sb_small_c2", "clam_mb_big_plain_c3", "clam_mil_c3", "dsmil_c3", "millab_abmil_plain_c2",
           "millab_clam_subtyping_c3", "millab_dsmil_c3", "stamp_mlp_c2", "stamp_linear_c3"]  # fmt: skip


@cache
def _weights(config: str) -> dict[str, Tensor]:
    """The weights of the head; of AttentionDeepMIL without its network over images."""
    return {key: w for key, w in HEADS.weights(config).items() if not key.startswith("feature_extractor_part")}


def _imported(
    config: str, folder: Path, layout: dict[str, Any] | None = None, options: HeadOptions | None = None
) -> FoundHead:
    path = folder / "head.pt"
    torch.save(in_layout(_weights(config), layout or {}), path)
    heads = HEADS.configs[config]["heads"]
    return import_head(path, "auto", options or HeadOptions(heads=heads, nystrom_rows="last"))


def _bag(config: str, patches: int) -> Tensor:
    return features(patches, HEADS.configs[config]["features"], f"hagmil-heads-{config}")


def _assert_near(ours: Tensor, published: Any, tolerance: float = TENSOR_TOLERANCE) -> None:
    np.testing.assert_allclose(ours.numpy(), published, rtol=0, atol=tolerance)


@pytest.mark.parametrize("config", [*SMALL, *REDUCED])
def test_a_head_reproduces_logits_attention_and_losses(config: str, tmp_path: Path) -> None:
    found = _imported(config, tmp_path)
    published = HEADS.configs[config]
    assert found.kind == KINDS[published["head"]]
    assert (found.feature_dim, found.classes) == (published["features"], max(2, published["classes"]))
    model = build_head(found)
    for patches in BAGS:
        bag = _bag(config, patches)
        with torch.inference_mode():
            logits, attention = model(bag)
            output = getattr(model, "forward_training", model)(bag)
        _assert_near(logits[-published["classes"] :], HEADS.output(config, patches, "logits"))
        _check_attention(config, patches, found.kind, attention, output)
        _check_losses(config, patches, model, output)


def _check_attention(config: str, patches: int, kind: str, attention: Tensor, output: Any) -> None:
    scores = HEADS.output(config, patches, "attention")
    if kind == "dsmil":
        _assert_near(output.instance_logits, _stored(config, patches, "instance_logits", output.instance_logits))
        _assert_near(output.max_logits, HEADS.output(config, patches, "max_logits"))
        attention = torch.softmax(output.scores, dim=1).mT
    if scores is not None:
        _assert_near(attention, scores)
    if kind == "max":
        _assert_near(attention.mT.exp(), _stored(config, patches, "instance_prob", attention.mT.exp()))
    of_token = HEADS.output(config, patches, "class_token_attention")
    if of_token is not None and kind == "transmil":
        _assert_near(attention, of_token[-1])


def _stored(config: str, patches: int, name: str, otherwise: Tensor) -> Any:
    found = HEADS.output(config, patches, name)
    return otherwise.numpy() if found is None else found


def _check_losses(config: str, patches: int, model: Any, output: Any) -> None:
    bag, instance = HEADS.output(config, patches, "bag_loss"), HEADS.output(config, patches, "instance_loss")
    if bag is not None:
        for label, expected in enumerate(bag):
            np.testing.assert_allclose(bag_loss(output.logits, label).item(), expected, rtol=LOSS_TOLERANCE)
    if instance is not None and instance.ndim == 3:
        names: tuple[InstanceLossKind, InstanceLossKind] = ("cross_entropy", "svm")
        for label, name, subtyping in np.ndindex(instance.shape):
            settings = ClamLossConfig(bag_weight=0, instance_weight=1, instance=names[name], subtyping=bool(subtyping))
            ours = clam_loss(output, label, model, settings).item()
            np.testing.assert_allclose(ours, instance[label, name, subtyping], rtol=LOSS_TOLERANCE)
    loss = HEADS.output(config, patches, "loss")
    if loss is not None and isinstance(output, DsmilOutput):
        for label in range(len(loss) - 1):
            first = len(output.logits) - len(output.bag_logits)
            ours = dsmil_loss(output, label + first, model, DsmilLossConfig()).item()
            np.testing.assert_allclose(ours, loss[label], rtol=LOSS_TOLERANCE)


@pytest.mark.parametrize("config", ["admil_plain", "admil_gated"])
def test_attention_deep_mil_over_the_features_of_its_images(config: str, tmp_path: Path) -> None:
    all_weights = HEADS.weights(config)
    model = build_head(_imported(config, tmp_path))
    for patches in (1, 5, 17):
        image = features(patches, 784, f"hagmil-heads-{config}").reshape(patches, 1, 28, 28)
        for layer in (0, 3):
            name = f"feature_extractor_part1.{layer}"
            image = torch.conv2d(image, all_weights[f"{name}.weight"], all_weights[f"{name}.bias"])
            image = torch.max_pool2d(image.relu(), 2, 2)
        name = "feature_extractor_part2.0"
        rows = torch.nn.functional.linear(image.flatten(1), all_weights[f"{name}.weight"], all_weights[f"{name}.bias"])
        with torch.inference_mode():
            logits, attention = model(rows.relu())
        probability = torch.softmax(logits, dim=0)[1:].clamp(1e-5, 1 - 1e-5)
        _assert_near(torch.softmax(logits, dim=0)[1:], HEADS.output(config, patches, "prob"))
        _assert_near(torch.softmax(attention, dim=0), HEADS.output(config, patches, "attention_softmax"))
        loss = [-torch.log(1 - probability).item(), -torch.log(probability).item()]
        np.testing.assert_allclose(loss, HEADS.output(config, patches, "loss"), rtol=LOSS_TOLERANCE)


def test_the_older_attention_of_transmil_and_the_mask_of_stamp_are_options(tmp_path: Path) -> None:
    for config, name, options in (
        ("transmil_d64_c3", "logits_nystrom0.0.9", HeadOptions()),  # the default for files of TransMIL
        ("stamp_vit_d64_c3", "logits_masked", HeadOptions(heads=4, masked=True)),
    ):
        model = build_head(_imported(config, tmp_path, options=options))
        for patches in BAGS:
            with torch.inference_mode():
                _assert_near(model(_bag(config, patches))[0], HEADS.output(config, patches, name))


def _layouts() -> list[tuple[str, str]]:
    found = []
    for head, layouts in HEADS.layouts.items():
        config = next((name for name in SMALL if HEADS.configs[name]["head"] == head), None)
        found += [(config, layout) for layout in layouts if config is not None]
    return found


@pytest.mark.parametrize(("config", "layout"), _layouts())
def test_every_layout_gives_the_same_weights(config: str, layout: str, tmp_path: Path) -> None:
    how = HEADS.layouts[HEADS.configs[config]["head"]][layout]
    if layout == "headless":
        with pytest.raises(BundleError, match=r"has no classifier|incomplete DSMIL"):
            _imported(config, tmp_path, how)
        return
    expected, found = _imported(config, tmp_path), _imported(config, tmp_path, how)
    assert (found.kind, found.config) == (expected.kind, expected.config)
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[key], expected.weights[key]) for key in expected.weights)


def test_containers_of_lightning_and_safetensors_give_names_and_heads(tmp_path: Path) -> None:
    weights = {f"vision_transformer.{key}": w for key, w in _weights("stamp_vit_d64_c3").items()}
    settings = {"n_heads": 4, "categories": ["x", "y", "z"], "train_patients": ["Jane Doe"]}
    content = {"pytorch-lightning_version": "2.5", "state_dict": weights, "hyper_parameters": settings}
    torch.save(content, tmp_path / "model.ckpt")
    out = tmp_path / "out"
    card = import_checkpoint(tmp_path / "model.ckpt", "auto", out, ImportOptions(spacing_um=[0.5]))
    assert (card.kind, card.classes, card.patch_px) == ("stamp", ("x", "y", "z"), 256)
    assert card.imported is not None
    assert card.imported.recognised_by == "transformer.layers and class token: STAMP; 4 attention heads"
    assert "Jane" not in card.model_dump_json()
    (model,) = build_models(load_checkpoint(out))
    with torch.inference_mode():
        logits = model(_bag("stamp_vit_d64_c3", 17))[0]
    _assert_near(logits, HEADS.output("stamp_vit_d64_c3", 17, "logits"))

    (tmp_path / "millab").mkdir()
    save_file({f"model.{key}": w for key, w in _weights("millab_transformer_d64_c3").items()},
              tmp_path / "millab" / "model.safetensors")  # fmt: skip
    (tmp_path / "millab" / "config.json").write_text('{"num_heads": 4}')
    assert import_head(tmp_path / "millab", "stamp").config.model_dump()["heads"] == 4


@pytest.mark.parametrize(
    ("config", "kind", "options", "error", "message"),
    [
        ("clam_sb_d64_small_c2", "auto", {"classes": ["a", "b", "c"]}, UsageError, "3 classes are given"),
        ("clam_sb_d64_small_c2", "clam-sb", {"spacing_um": None}, UsageError, "pass --spacing-um"),
        ("clam_sb_d64_small_c2", "clam-sb", {"spacing_um": [1.0, 0.5]}, UsageError, "2 spacings are given"),
        ("clam_mb_d64_small_c2", "clam-sb", {}, BundleError, "contains clam-mb .*; pass --kind clam-mb"),
        ("stamp_vit_d64_c3", "transmil", {}, BundleError, "contains stamp"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_and_nothing_is_written(
    config: str, kind: str, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    torch.save(_weights(config), tmp_path / "head.pt")
    with pytest.raises(error, match=message):
        import_checkpoint(
            tmp_path / "head.pt", kind, tmp_path / "out", ImportOptions(**{"spacing_um": [0.5], **options})
        )
    assert not (tmp_path / "out").exists()


def test_unknown_and_unsupported_weights_are_named(tmp_path: Path) -> None:
    for weights, message in (
        ({"backbone.weight": torch.ones(2, 2)}, "contains no known head; its weights are backbone.weight"),
        ({"class_token": torch.ones(4), "x.mhsa.query_encoders.0.weight": torch.ones(2, 2)}, "uses ALiBi"),
        ({**_weights("clam_sb_d64_small_c2"), "extra.weight": torch.ones(2, 2)}, "extra.weight is"),
        ({"fc.weight": torch.ones(1, 4), "fc.bias": torch.ones(1)}, "regression or survival"),
    ):
        torch.save(weights, tmp_path / "head.pt")
        with pytest.raises(BundleError, match=message):
            import_head(tmp_path / "head.pt", "auto")


def test_dsmil_gets_a_negative_class_from_one_more_name(tmp_path: Path) -> None:
    torch.save(_weights("dsmil_d64_c2"), tmp_path / "head.pt")
    options = ImportOptions(spacing_um=[0.5], classes=["normal", "a", "b"])
    card = import_checkpoint(tmp_path / "head.pt", "dsmil", tmp_path / "out", options)
    (model,) = build_models(load_checkpoint(tmp_path / "out"))
    logits, attention = model(_bag("dsmil_d64_c2", 5))
    assert card.classes == ("normal", "a", "b")
    assert logits[0] == 0
    assert attention.shape == (3, 5)
