"""Reading weights from files without executing code, and loading them strictly by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hagmil._files import sha256_of
from hagmil.errors import BundleError, UsageError

_PICKLED = frozenset({".pth", ".pt", ".bin"})
_COUNTER = "num_batches_tracked"  # of batch normalisation: not used in inference, missing in old files


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file to the CPU, without executing code in the file.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt`` or ``.bin`` with a state dict saved by torch (in either of its
            formats), possibly under the only key ``state_dict``.

    Returns:
        Weights by name.

    Raises:
        UsageError: the file does not exist.
        BundleError: the file has another format, or contains more than weights.
    """
    if not path.is_file():
        raise UsageError(f'weights file "{path}" does not exist', code="weights_missing")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path)
    raise BundleError(
        f'weights file "{path}": unknown type "{path.suffix}"; pass a .safetensors, .pth, .pt or .bin file',
        code="weights_unreadable",
    )


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], *, ignored: tuple[str, ...] = ()) -> None:
    """Load weights into a module; all names must match.

    Args:
        module: the module; weights are converted to its types.
        weights: weights by name.
        ignored: names, or prefixes of names that end in a dot, of weights to ignore.

    Raises:
        BundleError: names are missing or unexpected, shapes differ, or values are not finite.
    """
    expected = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(_COUNTER)}
    given = {
        name: tensor
        for name, tensor in weights.items()
        if not name.endswith(_COUNTER) and not _is_ignored(name, ignored)
    }
    problems = _differences(expected, given)
    if problems:
        raise BundleError(f"the weights do not fit this backbone: {'; '.join(problems)}", code="weights_mismatch")
    module.load_state_dict(given, strict=False)


def describe_file(path: Path) -> str:
    """Describe a weights file by its name and digest."""
    return f"file {path.name}, sha256 {sha256_of(path)}"


def _is_ignored(name: str, ignored: tuple[str, ...]) -> bool:
    return any(name == entry or (entry.endswith(".") and name.startswith(entry)) for entry in ignored)


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    both = sorted(expected.keys() & given.keys())
    shapes = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(expected[name].shape)}"
        for name in both
        if given[name].shape != expected[name].shape
    ]
    broken = [name for name in both if not bool(torch.isfinite(given[name]).all())]
    return [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("different shape", shapes),
            ("not finite", broken),
        )
        if names
    ]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BundleError(
            f'weights file "{path}" is not a safetensors file: {error}', code="weights_unreadable"
        ) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or refused pickle can raise any error
        raise BundleError(
            f'weights file "{path}" is refused: it cannot be read as plain weights without executing code; '
            "save the state dict of the model as safetensors",
            code="weights_unreadable",
        ) from error
    if isinstance(content, Mapping) and set(content) == {"state_dict"}:
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise BundleError(
            f'weights file "{path}" is refused: it must contain a state dict (names and tensors) only',
            code="weights_unreadable",
        )
    return dict(content)
