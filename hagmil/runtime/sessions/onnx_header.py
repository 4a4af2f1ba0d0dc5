"""What an ONNX file says of itself, read off its outer bytes: no package, and none of its weights.

An ONNX file is a protocol-buffers message. Its outermost fields are walked one by one, and the graph, which is nearly
all of it, is leapt over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from hagmil.errors import BundleError

_IR_VERSION, _PRODUCER, _OPSET_IMPORT = 1, 2, 8  # fields of ModelProto
_DOMAIN, _VERSION = 1, 2  # fields of OperatorSetIdProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is written
_LONGEST_READ = 1 << 16
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True)
class OnnxHeader:
    """The outer fields of an ONNX file.

    Args:
        ir_version: version of the file's own form.
        producer: what wrote it; empty where it does not say.
        opsets: version of each set of operators, by its domain; the standard one's domain is empty.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]

    @property
    def opset(self) -> int:
        """Version of the standard operators; 0 where the file uses none."""
        return self.opsets.get("", 0)


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read the outer fields of an ONNX file.

    Raises:
        BundleError: it is missing, or no ONNX file.
    """
    try:
        with path.open("rb") as file:
            return _header(file)
    except (OSError, ValueError) as error:
        raise BundleError(f'"{path}" cannot be read as ONNX: {error}', code="graph_invalid") from error


def _header(file: BinaryIO) -> OnnxHeader:
    ir_version, producer, opsets = 0, "", dict[str, int]()
    for field, value in _fields(file):
        if field == _IR_VERSION and isinstance(value, int):
            ir_version = value
        elif field == _PRODUCER and isinstance(value, bytes):
            producer = value.decode()
        elif field == _OPSET_IMPORT and isinstance(value, bytes):
            domain, version = _opset(value)
            opsets[domain] = version
    if not opsets:
        raise ValueError("it names no operators")
    return OnnxHeader(ir_version, producer, opsets)


def _opset(message: bytes) -> tuple[str, int]:
    domain, version = "", 0
    for field, value in _fields(BytesIO(message)):
        if field == _DOMAIN and isinstance(value, bytes):
            domain = value.decode()
        elif field == _VERSION and isinstance(value, int):
            version = value
    return ("" if domain == "ai.onnx" else domain), version


def _fields(file: BinaryIO) -> Iterator[tuple[int, int | bytes | None]]:
    """Number and value of each field; the value of a long one is leapt over and given as None."""
    end = file.seek(0, 2)
    file.seek(0)
    while file.tell() < end:
        tag = _varint(file)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            yield field, _varint(file)
        elif kind in (_FIXED64, _FIXED32):
            file.seek(8 if kind == _FIXED64 else 4, 1)
        elif kind == _BYTES:
            length = _varint(file)
            if file.tell() + length > end:
                raise ValueError("it is cut off")
            if length <= _LONGEST_READ:
                yield field, file.read(length)
            else:
                file.seek(length, 1)
                yield field, None
        else:
            raise ValueError("its bytes are no protocol-buffers message")


def _varint(file: BinaryIO) -> int:
    """A whole number: seven bits a byte, least first, the eighth bit says that more follow."""
    value = 0
    for place in range(_LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is cut off")
        value |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            return value
    raise ValueError("its bytes are no protocol-buffers message")
