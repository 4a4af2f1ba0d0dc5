"""ONNX graphs as files: what they say of themselves, writing and copying.

A file holds 2 GB at most. Weights of a graph that is larger lie beside it, in ``<graph>.data``; the graph notes their
digest, so that its own digest names them too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from hagmil._files import atomic_path, sha256_of, write_bytes

LARGEST_FILE_BYTES = 2_000_000_000
DATA_SUFFIX = ".data"
WEIGHTS_DIGEST_KEY = "weights_sha256"
"""Metadata of a graph whose weights lie beside it: the digest of that file."""

_SMALL_BYTES = 1024
_ALIGNMENT_BYTES = 4096


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a graph uses."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def axes_of(value: onnx.ValueInfoProto) -> tuple[str | int, ...] | None:
    """The axes of an input or output: a number where fixed, a word where dynamic (empty where unnamed).

    Returns:
        The axes, or None where the graph does not even say how many.
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """The element type of an input or output, as NumPy writes it."""
    code = value.type.tensor_type.elem_type
    return (
        "undefined" if code == onnx.TensorProto.UNDEFINED else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name
    )


def weights_bytes(model: onnx.ModelProto) -> int:
    """How many bytes a graph's weights take."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def save(model: onnx.ModelProto, path: Path, *, largest_bytes: int = LARGEST_FILE_BYTES) -> None:
    """Write a graph with its weights; the same graph always gives the same bytes.

    Args:
        model: the graph.
        path: the file to write; large weights go into another beside it.
        largest_bytes: weights above this lie beside the graph.
    """
    if weights_bytes(model) <= largest_bytes:
        write_bytes(path, model.SerializeToString(deterministic=True))
        return
    data = path.with_name(path.name + DATA_SUFFIX)
    light = onnx.ModelProto()
    light.CopyFrom(model)
    with atomic_path(data) as temporary, temporary.open("wb") as file:
        for tensor in light.graph.initializer:
            if len(tensor.raw_data) > _SMALL_BYTES:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
                offset = file.tell()
                file.write(tensor.raw_data)
                set_external_data(tensor, data.name, offset=offset, length=file.tell() - offset)
                tensor.ClearField("raw_data")
    light.metadata_props.add(key=WEIGHTS_DIGEST_KEY, value=sha256_of(data))
    write_bytes(path, light.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))  # it was too large to be checked in memory


def data_files(path: Path) -> tuple[str, ...]:
    """Names of the files beside a graph that hold weights of it."""
    graph = onnx.load(path, load_external_data=False).graph
    return tuple(
        dict.fromkeys(
            entry.value
            for tensor in graph.initializer
            if tensor.data_location == TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        )
    )


def copy_graph(source: Path, target: Path) -> None:
    """Copy a graph, and the files beside it that hold its weights, into another folder."""
    for name in data_files(source):
        shutil.copyfile(source.with_name(name), target.with_name(name))
    shutil.copyfile(source, target)
