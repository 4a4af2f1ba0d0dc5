"""Reading weights without executing code, and loading them by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hagmil.errors import BundleError, UsageError
from hagmil.export.backbones.weights import load_exactly, read_weights


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


class _Trap:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_file_formats_of_torch_are_read(tmp_path: Path, zipped: bool) -> None:
    state = _module().state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)

    weights = read_weights(path)

    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = _module().state_dict()
    save_file(state, tmp_path / "weights.safetensors")

    weights = read_weights(tmp_path / "weights.safetensors")

    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_weights_under_the_key_state_dict_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": _module().state_dict()}, tmp_path / "weights.pt")

    assert "0.weight" in read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_with_code_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "weights.pth"
    torch.save({"weight": _Trap(trace)}, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(BundleError, match="without executing code") as caught:
        read_weights(path)

    assert caught.value.code == "weights_unreadable"
    assert not trace.exists()


def test_a_plain_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps(_Trap(trace)))

    with pytest.raises(BundleError, match="is refused"):
        read_weights(path)

    assert not trace.exists()


def test_a_file_with_more_than_names_and_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"weight": torch.zeros(2)}}, tmp_path / "weights.pth")

    with pytest.raises(BundleError, match=r"\(names and tensors\) only"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")

    with pytest.raises(BundleError) as caught:
        read_weights(tmp_path / name)

    assert caught.value.code == "weights_unreadable"


def test_an_unknown_type_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(b"")

    with pytest.raises(BundleError, match=r'unknown type ".pkl"'):
        read_weights(tmp_path / "weights.pkl")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights file .* does not exist"):
        read_weights(tmp_path / "weights.pth")


def test_missing_unexpected_misshapen_and_infinite_weights_are_named() -> None:
    module = _module()
    weights = dict(module.state_dict())
    del weights["0.bias"]
    weights["2.weight"] = torch.zeros(1)
    weights["1.weight"] = torch.zeros(5)
    weights["1.bias"] = torch.full((4,), torch.nan)

    with pytest.raises(BundleError) as caught:
        load_exactly(module, weights)

    assert "missing: 0.bias" in caught.value.message
    assert "unexpected: 2.weight" in caught.value.message
    assert "1.weight is (5,), not (4,)" in caught.value.message
    assert "not finite: 1.bias" in caught.value.message


def test_only_named_weights_are_ignored() -> None:
    module = _module()
    weights = {**module.state_dict(), "head.weight": torch.zeros(1), "headless.weight": torch.zeros(1)}

    with pytest.raises(BundleError, match=r"unexpected: headless\.weight$"):
        load_exactly(module, weights, ignored=("head.",))


def test_batch_normalisation_counters_are_optional_and_fp16_is_widened() -> None:
    source, target = _module(), _module()
    weights = {name: tensor.half() for name, tensor in source.state_dict().items() if "num_batches" not in name}

    load_exactly(target, weights)

    assert target.state_dict()["0.weight"].dtype == torch.float32
    assert torch.equal(target.state_dict()["0.weight"], weights["0.weight"].float())
