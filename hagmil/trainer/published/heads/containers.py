"""Files of other projects: find the weights and the settings beside them, executing nothing.

1. Read safetensors (with ``config.json`` beside it), or a file of ``torch.save``.
2. Find the state dict: the content itself, or under one of the names that training codes use.
3. Remove prefixes that wrap the whole model, and ``module`` of data-parallel parts of CLAM.
4. Drop what is not part of the head: labels of a loss, and the encoder of DSMIL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hagmil.errors import BundleError
from hagmil.trainer.published.torch_file import check_checksums, copy_tensor, read_torch_file

_STATES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "model.", "vision_transformer.")
_WRAPPED_PART = re.compile(r"^(attention_net|classifiers?|fc)\.module\.(?=\d|weight|bias)")
_NOT_THE_HEAD = re.compile(r"^(model\.)?(instance_loss_fn\.|i_classifier\.feature_extractor\.|class_weights$)")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_SETTINGS = ("hyper_parameters", "config")


@dataclass(frozen=True, slots=True)
class HeadFile:
    """Weights and settings of a file.

    Args:
        path: the file.
        weights: float32 by the names of the published module.
        settings: hyperparameters that the file or the ``config.json`` beside it contains.
        is_lightning: whether PyTorch Lightning wrote it.
    """

    path: Path
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_lightning: bool = False


def read_head_file(path: Path) -> HeadFile:
    """Read a checkpoint of another project.

    Args:
        path: the file, or a folder with ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        BundleError: the file cannot be read, would execute something, or contains no weights.
    """
    path = head_file(path)
    if path.suffix == ".safetensors":
        return HeadFile(path, _clean(_safetensors(path)), _settings_beside(path))
    content = read_torch_file(path)  # step 1
    settings: Any = {}
    is_lightning = isinstance(content, dict) and "pytorch-lightning_version" in content
    if isinstance(content, dict):
        settings = next((content[key] for key in _SETTINGS if isinstance(content.get(key), dict)), {})
    for key in _STATES:  # step 2
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = (
        {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise BundleError(f'"{path}" holds no state dict; save model.state_dict()', code="wrong_weights")
    cleaned = _clean(tensors)
    check_checksums(path)
    weights = {key: copy_tensor(tensor, path).float() for key, tensor in cleaned.items()}
    return HeadFile(path, weights, settings or _settings_beside(path), is_lightning)


def head_file(path: Path) -> Path:
    """The file itself, or the file with weights in a folder.

    Raises:
        BundleError: the folder contains no such file.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
    if found is None:
        raise BundleError(f'"{path}" contains no {" and no ".join(_FOLDER_FILES)}', code="unreadable")
    return found


def _clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Steps 3 and 4."""
    kept = {key: tensor for key, tensor in tensors.items() if not _NOT_THE_HEAD.match(key)}
    while kept:
        prefix = next((one for one in _PREFIXES if all(key.startswith(one) for key in kept)), None)
        if prefix is None:
            break
        kept = {key.removeprefix(prefix): tensor for key, tensor in kept.items()}
        kept = {key: tensor for key, tensor in kept.items() if not _NOT_THE_HEAD.match(key)}
    return {_WRAPPED_PART.sub(r"\1.", key): tensor for key, tensor in kept.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return {key: tensor.float() for key, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise BundleError(f'"{path}" cannot be read: {error}', code="unreadable") from error


def _settings_beside(path: Path) -> dict[str, Any]:
    """The content of ``config.json`` in the folder of the file; empty if there is none."""
    try:
        found = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
