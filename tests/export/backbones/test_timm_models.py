"""timm models as backbones, with the real timm and a stand-in for torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hagmil.bundle import BACKBONE_ONNX_NAME
from hagmil.errors import BundleError, EnvironmentLacks, UsageError
from hagmil.export.backbones import timm_models
from hagmil.export.backbones.encoder import PatchEncoder
from hagmil.export.backbones.export_backbone import export_backbone, find_backbone
from hagmil.export.backbones.timm_models import timm_backbone
from hagmil.export.parity.synthetic_inputs import synthetic_patches
from hagmil.runtime.sessions import open_session

CNN = "test_efficientnet"
CNN_OF_ONE_SIZE = "test_resnet"  # its pooling with ceil_mode cannot be captured for every size
VIT = "test_vit"

pytestmark = pytest.mark.usefixtures("real_timm")


def _features(folder: Path, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    patches = synthetic_patches("tissue", *shape, seed=5)
    return patches, open_session(folder / BACKBONE_ONNX_NAME).run({"patches": patches})["features"]


def test_a_convolutional_model_keeps_height_and_width_dynamic(tmp_path: Path) -> None:
    card = export_backbone(f"timm:{CNN}", "random", tmp_path / "cnn")
    backbone = find_backbone(CNN, "random")
    module = PatchEncoder(backbone.encoder, backbone.mean, backbone.std).eval()

    assert card.name == f"timm:{CNN}"
    assert card.patch_px is None
    for shape in ((1, 64, 64), (2, 96, 80), (7, 67, 65)):
        patches, features = _features(tmp_path / "cnn", shape)
        with torch.inference_mode():
            expected = module(torch.from_numpy(patches)).features.numpy()
        np.testing.assert_allclose(features, expected, atol=1e-5)


def test_a_convolutional_model_is_exported_for_one_size_if_not_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = export_backbone(CNN_OF_ONE_SIZE, "random", tmp_path / "cnn", patch_px=96)

    assert card.patch_px == 96
    assert "is exported for patches of 96 pixels only" in caplog.text
    assert _features(tmp_path / "cnn", (2, 96, 96))[1].shape == (2, card.features)


def test_a_vision_transformer_has_a_fixed_size(tmp_path: Path) -> None:
    card = export_backbone(VIT, "random", tmp_path / "vit")

    assert card.patch_px == 160
    assert card.features == 64
    for batch in (1, 2, 7):
        assert _features(tmp_path / "vit", (batch, 160, 160))[1].shape == (batch, 64)
    with pytest.raises(BundleError, match="cannot run on these inputs"):
        _features(tmp_path / "vit", (1, 64, 64))


def test_a_vision_transformer_can_be_exported_for_another_size(tmp_path: Path) -> None:
    card = export_backbone(VIT, "random", tmp_path / "vit", patch_px=64)

    assert card.patch_px == 64
    assert _features(tmp_path / "vit", (2, 64, 64))[1].shape == (2, 64)


def test_a_size_that_does_not_divide_into_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot take patches of 50 pixels"):
        timm_backbone(VIT, "random", patch_px=50)


def test_normalisation_comes_from_the_model() -> None:
    backbone = timm_backbone("vit_tiny_patch16_224.augreg_in21k", "random", patch_px=None)

    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


def test_weights_from_a_file_are_loaded_without_the_classifier(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(7)
    whole = timm.create_model(CNN, pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")

    backbone = timm_backbone(CNN, str(tmp_path / "weights.pth"), patch_px=None)

    assert "weights.pth" in backbone.weights
    name = "conv_stem.weight"
    assert torch.equal(backbone.encoder.state_dict()[name], whole.state_dict()[name])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")

    with pytest.raises(BundleError, match=r"unexpected: conv\.weight"):
        timm_backbone(CNN, str(tmp_path / "weights.pth"), patch_px=None)


def test_random_weights_are_reproducible_and_keep_the_seed_of_torch() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = (timm_backbone(CNN, "random", patch_px=None).encoder.state_dict() for _ in range(2))

    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_weights_on_the_hub_is_reported() -> None:
    with pytest.raises(UsageError, match="timm cannot load weights"):
        timm_backbone("resnet10t.no_such_weights", "hub", patch_px=None)


def test_a_name_unknown_to_timm_is_refused() -> None:
    with pytest.raises(UsageError, match='timm has no model "resnet5000"'):
        timm_backbone("resnet5000", "random", patch_px=None)


def test_a_timm_model_without_weights_option_is_refused() -> None:
    with pytest.raises(UsageError, match="a file, hub, or random"):
        find_backbone(CNN, None)


def test_a_missing_requirement_of_timm_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    monkeypatch.setattr(timm_models, "require", missing)

    with pytest.raises(EnvironmentLacks, match='timm needs package "torchvision"'):
        timm_backbone(CNN, "random", patch_px=None)
    assert not timm_models.timm_is_installed()
