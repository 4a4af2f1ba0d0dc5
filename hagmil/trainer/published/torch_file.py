"""Reading files of torch.save without executing anything in them.

1. A zip archive (torch 1.6 and later) holds one pickle, ``data.pkl``, and one uncompressed entry a storage.
   An older file is five pickles one after another, then the storages.
2. The pickle is read by :func:`~hagmil.trainer.published.pickle_machine.read_pickle`; a persistent id in it names a
   storage, and the calls that rebuild a tensor give a :class:`StoredTensor`: where its numbers stand and how
   they lie.
3. Numbers are read when asked for, so what nobody asks for (an optimiser's state) is never read.

That nothing is executed does not make a file honest: a tensor must lie within its storage and may not cover a
number twice (a few bytes could claim any amount of memory), entries must be uncompressed for the same reason,
and their checksums must hold.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hagmil.errors import BundleError
from hagmil.trainer.published.pickle_machine import read_pickle
from hagmil.trainer.published.pickle_names import Builder, Inert, Name, PickleBroken, PickleRefused

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # an entry's header: magic, ..., length of name and of extra field
_BROKEN = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, UnicodeDecodeError, struct.error)
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_COUNT = struct.Struct("<q")  # before each storage of an old file: its number of elements


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in a file.

    Args:
        path: the file.
        offset_bytes: where the first number stands.
        count: how many there are.
        dtype: their type, little-endian.
        crc32: checksum of their bytes, None where the format has none.
    """

    path: Path
    offset_bytes: int
    count: int
    dtype: torch.dtype
    crc32: int | None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    Args:
        storage: finds the numbers; the order of old files is known only behind the pickle that names them.
        offset: elements of the storage before the first of the tensor.
        shape: its shape.
        stride: elements of the storage from one to the next, along each axis.
    """

    storage: Callable[[], Storage]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """Read the numbers.

        Returns:
            A contiguous tensor on the CPU, with the file's dtype.

        Raises:
            BundleError: the file ends too soon, or its checksum does not hold.
        """
        storage = self.storage()
        flat = _read_storage(storage)
        tensor = flat.as_strided(self.shape, self.stride, self.offset)
        if tensor.numel() == flat.numel():
            return tensor.contiguous()
        return tensor.clone(memory_format=torch.contiguous_format)  # lets the rest of the storage go


def read_torch_file(path: Path) -> Any:
    """Read a file of torch.save, executing nothing.

    Args:
        path: the file, a zip archive or in the older format.

    Returns:
        What was saved: plain containers, numbers and strings, a :class:`StoredTensor` for each tensor, and
        inert placeholders for everything else.

    Raises:
        BundleError: the file cannot be read, is no file of torch.save, or would execute something (named).
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                return _read_zip(path)
            file.seek(0)
            return _read_old(path, file)
    except OSError as error:
        raise BundleError(f'"{path}" cannot be read: {error.strerror or error}', code="unreadable") from error
    except PickleRefused as error:
        raise refusal(path, error) from error
    except (PickleBroken, *_BROKEN) as error:
        raise BundleError(f'"{path}" is no file of torch.save: {error}', code="unreadable") from error


def refusal(path: Path, error: PickleRefused) -> BundleError:
    """The error for a pickle that would execute something."""
    return BundleError(
        f'"{path}" was refused and nothing in it was executed: {error}, which no checkpoint or feature file '
        "needs; get the file again from a source that you trust",
        code="unsafe_pickle",
    )


def _read_zip(path: Path) -> Any:
    """Step 1 for an archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleBroken("the archive does not hold one data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in entries:
            raise PickleBroken("it is a TorchScript archive, which is a program; save the model's state dict")
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise PickleBroken(f"entry {info.filename} is compressed or encrypted")
        if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
            raise PickleBroken("its numbers are big-endian")
        content = archive.read(pickles[0])

    def find(key: str, dtype: torch.dtype, count: int) -> Callable[[], Storage]:
        info = entries.get(f"{prefix}data/{key}")
        if info is None or info.file_size != count * dtype.itemsize:
            raise PickleBroken(f"storage {key} is missing or has another length than the pickle says")
        return lambda: Storage(path, _entry_offset(path, info), count, dtype, info.CRC)

    return _read_tensors(io.BytesIO(content), find)


def _entry_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its local header, of which the directory knows too little."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_ZIP_MAGIC):
        raise BundleError(f'"{path}": entry {info.filename} has no header', code="unreadable")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    return int(info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)


def _read_old(path: Path, file: IO[bytes]) -> Any:
    """Step 1 for an old file: magic number, version, system, content, keys of the storages, storages."""
    if read_pickle(file) != _OLD_MAGIC:
        raise PickleBroken("it has no magic number")
    read_pickle(file)
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleBroken("its numbers are big-endian")
    found: dict[str, Storage] = {}
    wanted: dict[str, tuple[torch.dtype, int]] = {}

    def find(key: str, dtype: torch.dtype, count: int) -> Callable[[], Storage]:
        if wanted.setdefault(key, (dtype, count)) != (dtype, count):
            raise PickleBroken(f"storage {key} is described in two ways")
        return lambda: found[key]

    content = _read_tensors(file, find)
    keys = read_pickle(file)
    if not isinstance(keys, list) or set(map(str, keys)) != wanted.keys():
        raise PickleBroken("the storages at its end are not those of its pickle")
    for key in map(str, keys):
        dtype, count = wanted[key]
        if _OLD_COUNT.unpack(file.read(_OLD_COUNT.size)) != (count,):
            raise PickleBroken(f"storage {key} has another length than the pickle says")
        found[key] = Storage(path, file.tell(), count, dtype, None)
        file.seek(count * dtype.itemsize, io.SEEK_CUR)
    return content


_Find = Callable[[str, torch.dtype, int], Callable[[], Storage]]


def _read_tensors(file: IO[bytes], find: _Find) -> Any:
    """Step 2."""

    def storage(identity: tuple[Any, ...]) -> _FoundStorage:
        kind, storage_type, key, _location, count, *view = identity
        if kind != "storage" or not isinstance(storage_type, Name) or view not in ([], [None]):
            raise ValueError("a persistent id that is no storage")
        dtype = _DTYPES.get(storage_type.path.rsplit(".", 1)[-1])
        if dtype is None:
            raise ValueError(f"numbers of type {storage_type.path}")
        return _FoundStorage(find(str(key), dtype, _natural(count)), _natural(count))

    return read_pickle(file, builders=_TENSOR_BUILDERS, persistent=storage)


@dataclass(frozen=True, slots=True)
class _FoundStorage:
    storage: Callable[[], Storage]
    count: int


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """A tensor of storage, offset, shape and stride; gradients and hooks are dropped."""
    found, offset, shape, stride = arguments[:4]
    if not isinstance(found, _FoundStorage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without a storage")
    tensor = StoredTensor(found.storage, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, stride)))
    if not _fits(tensor, found.count):
        raise ValueError(f"a tensor of shape {tensor.shape} outside its storage, or over itself")
    return tensor


def _fits(tensor: StoredTensor, count: int) -> bool:
    """Whether a tensor lies within its storage and covers no number twice."""
    if len(tensor.shape) != len(tensor.stride):
        return False
    if prod(tensor.shape) == 0:
        return tensor.offset <= count
    axes = sorted(axis for axis in zip(tensor.stride, tensor.shape, strict=True) if axis[1] > 1)
    apart = all(stride * size <= next_stride for (stride, size), (next_stride, _) in pairwise(axes))
    last = tensor.offset + sum(stride * (size - 1) for stride, size in axes)
    return apart and all(stride > 0 for stride, _ in axes) and last < count


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if not arguments or not isinstance(arguments[0], StoredTensor):
        raise ValueError("a parameter without a tensor")
    return arguments[0]


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} where a length should be" if isinstance(value, int) else "no length")
    return value


_TENSOR_BUILDERS: Mapping[str, Builder] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.serialization._get_layout": lambda _arguments: Inert("torch.layout"),
}


def _read_storage(storage: Storage) -> Tensor:
    """Step 3: all numbers of a storage, flat."""
    size_bytes = storage.count * storage.dtype.itemsize
    try:
        if storage.path.stat().st_size < storage.offset_bytes + size_bytes:
            raise BundleError(f'"{storage.path}" ends too soon', code="unreadable")
        data = bytearray(size_bytes)
        with storage.path.open("rb") as file:
            file.seek(storage.offset_bytes)
            file.readinto(data)
    except OSError as error:
        raise BundleError(f'"{storage.path}" cannot be read: {error.strerror}', code="unreadable") from error
    if storage.crc32 is not None and zlib.crc32(data) != storage.crc32:
        raise BundleError(f'"{storage.path}" is damaged: a checksum does not hold', code="unreadable")
    if not data:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(data, dtype=storage.dtype)
