"""``selftest.npz`` of a bundle: inputs and expected outputs of every graph.

Keys, where ``<model>`` is ``backbone`` or the name of a stage:

    <model>/input/<tensor>     input, with the dtype of the graph
    <model>/output/<tensor>    output of the source model in torch (backbone: of its graph on the CPU)
    <model>/tolerance          float64 (2,): absolute a and relative r; the allowed error is a + r x the largest value

The tolerances allow for the arithmetic of every provider (tensor cores round to 10 bits) and still detect a wrong
graph.
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
    """Inputs and expected outputs of one graph.

    Args:
        model: ``backbone`` or the name of a stage.
        inputs: arrays by input name.
        outputs: arrays by output name.
        absolute: absolute tolerance.
        relative: tolerance as a share of the largest value of an output.
    """

    model: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    absolute: float
    relative: float


def write_selftest(path: Path, cases: Iterable[SelfTestCase]) -> None:
    """Write a self-test; equal cases give equal bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    for case in cases:
        arrays[f"{case.model}/{_TOLERANCE}"] = np.array([case.absolute, case.relative], np.float64)
        arrays.update({f"{case.model}/input/{name}": array for name, array in case.inputs.items()})
        arrays.update({f"{case.model}/output/{name}": array for name, array in case.outputs.items()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_selftest(path: Path) -> tuple[SelfTestCase, ...]:
    """Read a self-test; the cases keep the order in which they were written.

    Raises:
        BundleError: the file is missing or damaged.
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
