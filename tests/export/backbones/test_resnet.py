"""The truncated ResNet-50: names of the published weights, and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hagmil.errors import BundleError
from hagmil.export.backbones.resnet import TruncatedResNet50, resnet50_trunc


def _published(seed: int = 0) -> dict[str, Tensor]:
    """A state dict like the published ImageNet file: the complete ResNet-50, without counters."""
    torch.manual_seed(seed)
    state = {
        name: torch.rand(tensor.shape) * 0.1
        for name, tensor in TruncatedResNet50().state_dict().items()
        if "num_batches_tracked" not in name
    }
    state["layer4.0.conv1.weight"] = torch.rand(512, 1024, 1, 1)
    state["layer4.0.bn1.running_mean"] = torch.rand(512)
    state["fc.weight"] = torch.rand(1000, 2048)
    state["fc.bias"] = torch.rand(1000)
    return state


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_published_file_is_loaded_without_its_last_stage(tmp_path: Path, zipped: bool) -> None:
    published = _published()
    path = tmp_path / "resnet50-19c8e357.pth"
    torch.save(published, path, _use_new_zipfile_serialization=zipped)

    backbone = resnet50_trunc(path)

    loaded = backbone.encoder.state_dict()
    assert torch.equal(loaded["layer3.5.bn3.running_var"], published["layer3.5.bn3.running_var"])
    assert not any(name.startswith(("layer4", "fc")) for name in loaded)
    assert "resnet50-19c8e357.pth" in backbone.weights
    assert "sha256" in backbone.weights


def test_a_file_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    published = _published()
    published["layer3.6.conv1.weight"] = torch.rand(256, 1024, 1, 1)
    del published["layer1.0.downsample.1.bias"]
    torch.save(published, tmp_path / "resnet101.pth")

    with pytest.raises(BundleError) as caught:
        resnet50_trunc(tmp_path / "resnet101.pth")

    assert "missing: layer1.0.downsample.1.bias" in caught.value.message
    assert "unexpected: layer3.6.conv1.weight" in caught.value.message
    assert "layer4" not in caught.value.message


def test_random_weights_are_reproducible_and_described_as_random() -> None:
    one, other = resnet50_trunc(None), resnet50_trunc(None)

    assert one.weights == "random, seed 0"
    theirs = other.encoder.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.encoder.state_dict().items())


def test_features_of_random_weights_are_in_the_range_of_fp16() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        features = resnet50_trunc(None).encoder(torch.randn(2, 3, 64, 64))

    assert features.shape == (2, 1024)
    assert 0.01 < float(features.mean()) < 10
    assert float(features.max()) < 100


@pytest.mark.usefixtures("real_timm")
def test_features_equal_those_of_the_third_stage_of_resnet_50() -> None:
    import timm

    torch.manual_seed(0)
    whole: Any = timm.create_model("resnet50", pretrained=False).eval()
    with torch.no_grad():
        for name, buffer in whole.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    ours = TruncatedResNet50().eval()
    state = whole.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    images = torch.randn(2, 3, 80, 96)
    with torch.inference_mode():
        maps = whole.maxpool(whole.act1(whole.bn1(whole.conv1(images))))
        expected = whole.layer3(whole.layer2(whole.layer1(maps))).mean(dim=(2, 3))
        features = ours(images)

    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
