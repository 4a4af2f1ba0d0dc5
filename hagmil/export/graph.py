"""Reading properties of ONNX graphs; writing and copying them.

An ONNX file is limited to 2 GB. The weights of larger graphs go to ``<graph>.data`` beside it. The graph contains the
digest of that file, so that the digest of the graph covers its weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from hagmil._files import atomic_path, sha256_of, write_bytes
from hagmil.bundle.graph_references import WEIGHTS_DIGEST_KEY

LARGEST_FILE_BYTES = 2_000_000_000
DATA_SUFFIX = ".data"
_SMALL_BYTES = 1024
_ALIGNMENT_BYTES = 4096


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset version of the standard operators of a graph."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def axes_of(value: onnx.ValueInfoProto) -> tuple[str | int, ...] | None:
    """Return the axes of an input or output.

    Returns:
        A number for each fixed axis and a name for each dynamic one (empty if unnamed); None if the rank is unknown.
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """Return the element type of an input or output as a NumPy name."""
    code = value.type.tensor_type.elem_type
    return (
        "undefined" if code == onnx.TensorProto.UNDEFINED else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name
    )


def weights_bytes(model: onnx.ModelProto) -> int:
    """Return the size of the weights of a graph in bytes."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def save(model: onnx.ModelProto, path: Path, *, largest_bytes: int = LARGEST_FILE_BYTES) -> None:
    """Write a graph with its weights; deterministic.

    Args:
        model: the graph.
        path: the file to write.
        largest_bytes: weights above this size go to a second file beside ``path``.
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
    onnx.checker.check_model(str(path))  # graphs of this size cannot be checked in memory


def data_files(path: Path) -> tuple[str, ...]:
    """Return the names of the files beside a graph that contain its weights."""
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
    """Copy a graph and its weight files to another folder."""
    for name in data_files(source):
        shutil.copyfile(source.with_name(name), target.with_name(name))
    shutil.copyfile(source, target)
