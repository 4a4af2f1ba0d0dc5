"""``selftest.npz`` of a bundle: inputs and expected outputs of every graph.

Keys, where ``<model>`` is ``backbone`` or the name of a stage:

    <model>/input/<tensor>     input, with the dtype of the graph
    <model>/output/<tensor>    output of the source model in torch (backbone: of its graph on the CPU)
    <model>/tolerance          float64 (2,): absolute a and relative r, 0 to 0.1; the allowed error is a + r x the
                               largest value

The tolerances allow for the arithmetic of every provider (tensor cores round to 10 bits) and still detect a wrong
graph.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format
from numpy.typing import NDArray

from hagmil._files import write_bytes
from hagmil.errors import BundleError, one_line

BACKBONE = "backbone"
LARGEST_TOLERANCE = 0.1
LARGEST_BYTES = 256 << 20
"""Largest size of all arrays together."""
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
        BundleError: the file is missing or damaged, exceeds the limits of the format, or a case has no outputs or
            tolerances out of bounds.
    """
    try:
        arrays = _read_arrays(path)
        models = [name.removesuffix(f"/{_TOLERANCE}") for name in arrays if name.endswith(f"/{_TOLERANCE}")]
        return tuple(_case(model, arrays) for model in models)
    except Exception as error:  # zipfile, zlib and NumPy raise errors of many types
        problem = f'self-test "{path}" cannot be read: {one_line(str(error))}'
        raise BundleError(problem, code="selftest_invalid") from error


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays; sizes are checked before an array is decompressed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total_bytes = sum(member.file_size for member in members)
        if total_bytes > LARGEST_BYTES:
            raise ValueError(f"its arrays have {total_bytes:,} bytes; at most {LARGEST_BYTES:,} are read")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("an array occurs twice")
        return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array in the format of NumPy, version 1.0, if its header and the size of the member agree."""
    with archive.open(member) as file:
        if format.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename} is not an array of NumPy's format 1.0")
        shape, fortran_order, dtype = format.read_array_header_1_0(file)
        expected_bytes = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "uif" or file.tell() + expected_bytes != member.file_size:
            raise ValueError(f"{member.filename} is not a complete array of numbers")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C")


def _case(model: str, arrays: Mapping[str, NDArray[Any]]) -> SelfTestCase:
    tolerance = arrays[f"{model}/{_TOLERANCE}"]
    absolute, relative = (float(value) for value in tolerance.ravel().tolist())
    for value in (absolute, relative):
        if not 0 <= value <= LARGEST_TOLERANCE:
            raise ValueError(f"{model}: tolerance {value} is outside 0 to {LARGEST_TOLERANCE}")
    inputs, outputs = _below(f"{model}/input/", arrays), _below(f"{model}/output/", arrays)
    if not inputs or not outputs or not all(array.size for array in (*inputs.values(), *outputs.values())):
        raise ValueError(f"{model}: the case has no inputs or no outputs")
    return SelfTestCase(model=model, inputs=inputs, outputs=outputs, absolute=absolute, relative=relative)


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
