"""Files and operators that an ONNX graph refers to, without the onnx package.

An ONNX file is a protocol-buffers message. Nodes, and tensors with weights in another file, occur in a few kinds of
inner messages only (onnx.proto3). These are walked; all other fields are skipped without reading them, so that the time
depends on the number of nodes and not on the size of the weights.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from hagmil.errors import BundleError

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
"""Names of the domain of the standard operators."""

WEIGHTS_DIGEST_KEY = "weights_sha256"
"""Metadata key of a graph with weights in another file: the digest of that file."""

_INNER: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 14: "Metadata", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute", 7: "domain"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
    "ExternalData": {1: "key", 2: "value"},
    "Metadata": {1: "key", 2: "value"},
}
"""Numbers of the fields to follow, by kind of message; a name in lower case is a string."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is encoded
_LONGEST_VARINT = 10
_DEEPEST = 100  # the limit of protocol-buffers libraries


@dataclass(frozen=True, slots=True)
class GraphReferences:
    """What a graph refers to.

    Args:
        data_files: files with weights of the graph, relative to its folder, as the graph names them.
        domains: domains of its operators, without the standard domain.
        weights_sha256: digests of files with weights, in the metadata of the graph.
    """

    data_files: frozenset[str]
    domains: frozenset[str]
    weights_sha256: frozenset[str]


def graph_references(path: Path) -> GraphReferences:
    """Find the files and the operator domains that an ONNX graph refers to.

    Args:
        path: the ONNX file.

    Raises:
        BundleError: it is not an ONNX file.
    """
    walk = _Walk(set(), set(), set())
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk.message(data, 0, len(data), "Model", 0)
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f'"{path}" cannot be read as ONNX: {error}', code="graph_invalid") from error
    return GraphReferences(
        frozenset(walk.data_files), frozenset(walk.domains - STANDARD_DOMAINS), frozenset(walk.weights_sha256)
    )


@dataclass(frozen=True, slots=True)
class _Walk:
    """Collects the references of all messages."""

    data_files: set[str]
    domains: set[str]
    weights_sha256: set[str]

    def message(self, data: mmap.mmap, place: int, end: int, kind: str, depth: int) -> None:
        """Walk the message in the bytes ``place`` to ``end``."""
        if depth > _DEEPEST:
            raise ValueError("its messages are nested too deeply")
        inner, texts = _INNER[kind], dict[str, str]()
        while place < end:
            tag, place = _varint(data, place)
            encoding = tag & 7
            if encoding == _BYTES:
                length, place = _varint(data, place)
                if place + length > end:
                    raise ValueError("it is truncated")
                name = inner.get(tag >> 3)
                if name is not None and name[0].isupper():
                    self.message(data, place, place + length, name, depth + 1)
                elif name is not None:
                    texts[name] = data[place : place + length].decode()
                place += length
            elif encoding == _VARINT:
                _, place = _varint(data, place)
            elif encoding in (_FIXED64, _FIXED32):
                place += 8 if encoding == _FIXED64 else 4
            else:
                raise ValueError("its bytes are not a protocol-buffers message")
        if place != end:
            raise ValueError("it is truncated")
        if kind == "Node":
            self.domains.add(texts.get("domain", ""))
        elif (kind, texts.get("key")) == ("ExternalData", "location"):
            self.data_files.add(texts.get("value", ""))
        elif (kind, texts.get("key")) == ("Metadata", WEIGHTS_DIGEST_KEY):
            self.weights_sha256.add(texts.get("value", ""))


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A variable-length integer (7 bits per byte, least significant first), and the place behind it."""
    value = data[place]
    if value < 0x80:
        return value, place + 1
    value &= 0x7F
    for index in range(1, _LONGEST_VARINT):
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("its bytes are not a protocol-buffers message")
