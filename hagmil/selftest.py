"""``selftest.npz`` of a bundle: inputs and expected outputs of every graph, so that any machine can be tried.

Keys, with ``<model>`` the word ``backbone`` or a stage's name:

    <model>/input/<tensor>     the input, of the graph's own type
    <model>/output/<tensor>    what the model's source in torch gave (for the backbone: its graph on the CPU)
    <model>/tolerance          float64 (2,): absolute a, relative r; a + r x its largest value is allowed

Tolerances are wide enough for every provider (tensor cores round to 10 bits) and narrow enough to catch a
wrong graph.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hagmil._files import write_bytes
from hagmil.errors import BundleError

BACKBONE = "backbone"
_TOLERANCE = "tolerance"


@dataclass(frozen=True, slots=True)
class SelfTestCase:
    """Inputs of one graph, and what must come out.

    Args:
        model: ``backbone``, or a stage's name.
        inputs: an array for every input, by its name.
        outputs: an array for every output, by its name.
        absolute: an output may be off by this much,
        relative: and by this share of its largest value.
    """

    model: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    absolute: float
    relative: float


def write_selftest(path: Path, cases: Iterable[SelfTestCase]) -> None:
    """Write a self-test; the same cases give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    for case in cases:
        arrays[f"{case.model}/{_TOLERANCE}"] = np.array([case.absolute, case.relative], np.float64)
        arrays.update({f"{case.model}/input/{name}": array for name, array in case.inputs.items()})
        arrays.update({f"{case.model}/output/{name}": array for name, array in case.outputs.items()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_selftest(path: Path) -> tuple[SelfTestCase, ...]:
    """Read a self-test, its cases in the order that they were written in.

    Raises:
        BundleError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        models = [name.removesuffix(f"/{_TOLERANCE}") for name in arrays if name.endswith(f"/{_TOLERANCE}")]
        return tuple(_case(model, arrays) for model in models)
    except (OSError, BadZipFile, ValueError, KeyError) as error:
        raise BundleError(f'self-test "{path}" cannot be read: {error}', code="selftest_invalid") from error


def _case(model: str, arrays: Mapping[str, NDArray[Any]]) -> SelfTestCase:
    absolute, relative = arrays[f"{model}/{_TOLERANCE}"].tolist()
    return SelfTestCase(
        model=model,
        inputs=_below(f"{model}/input/", arrays),
        outputs=_below(f"{model}/output/", arrays),
        absolute=absolute,
        relative=relative,
    )


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
