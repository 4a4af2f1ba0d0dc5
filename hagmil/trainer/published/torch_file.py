"""Reading of ``torch.save`` files without executing anything in them.

1. Check the format. A zip archive (torch 1.6 and later) holds one pickle, ``data.pkl``, and one uncompressed entry for
   each storage. A legacy file is a sequence of pickles, followed by the storages.
2. Scan the pickles and refuse names that no checkpoint needs (:mod:`hagmil.trainer.published.pickles`).
3. Read the file with ``torch.load(weights_only=True)``. Inert stand-ins are registered for the foreign names in it
   (:mod:`hagmil.trainer.published.stand_ins`). Tensors of an archive are memory-mapped, so numbers that are not
   used, such as an optimiser's state, are not read. A legacy file is read whole.
4. Copy the tensors that are used. A file can be harmless and still not be honest: a tensor must not cover a number
   twice (a few bytes could claim any amount of memory), and the checksums of the archive must match.
"""

from __future__ import annotations

import io
import threading
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from hagmil.errors import BundleError
from hagmil.trainer.published.pickles import PickleBroken, PickleRefused, scan_pickle
from hagmil.trainer.published.stand_ins import stand_ins

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys of the storages
_LEGACY_CONTENT = 3
_LOCK = threading.Lock()  # torch keeps registered classes, and Python warning filters, for the whole process


def read_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save``, executing nothing in it.

    Args:
        path: a zip archive or a legacy file.

    Returns:
        The content: plain containers, numbers, strings and tensors, with stand-ins for everything else. The tensors
        of an archive are mapped to the file; use :func:`copy_tensor` for those that are needed.

    Raises:
        BundleError: the file cannot be read, is not a file of ``torch.save``, or would execute something (named).
    """
    try:
        is_archive, content = _checked_pickle(path)  # steps 1 and 2
        return _load(path, content, mmap=is_archive)  # step 3
    except OSError as error:
        raise BundleError(f'"{path}" cannot be read: {error.strerror or error}', code="unreadable") from error
    except PickleRefused as error:
        raise refusal(path, error) from error
    except Exception as error:  # torch raises errors of many classes for a damaged file
        raise BundleError(
            f'"{path}" is not a valid torch.save file ({_reason(error)}); it is damaged, cut off or of another kind',
            code="unreadable",
        ) from error


def check_checksums(path: Path) -> None:
    """Check all bytes of an archive against its checksums; legacy files have none.

    Raises:
        BundleError: a checksum does not match, or the file cannot be read.
    """
    try:
        if not _is_archive(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises errors of many classes for a damaged file
        raise BundleError(f'"{path}" is damaged or cannot be read: {_reason(error)}', code="unreadable") from error
    if damaged is not None:
        raise BundleError(f'"{path}" is damaged: the checksum of {damaged} does not match', code="unreadable")


def copy_tensor(tensor: Tensor, path: Path) -> Tensor:
    """Copy a tensor of a file into memory.

    Args:
        tensor: from :func:`read_torch_file`.
        path: the file, for messages.

    Returns:
        A contiguous tensor on the CPU with the dtype of the file, independent of the file.

    Raises:
        BundleError: it is sparse or quantized, or covers a number of the file twice.
    """
    plain = Tensor.detach(tensor)
    dense = type(tensor) in (Tensor, Parameter) and plain.layout == torch.strided and plain.device.type == "cpu"
    if not dense or plain.is_quantized or _overlaps(plain):
        raise BundleError(f'"{path}" holds a tensor of {tuple(plain.shape)} that is not plain', code="unreadable")
    return plain.clone(memory_format=torch.contiguous_format)


def refusal(path: Path, error: PickleRefused) -> BundleError:
    """The error for a pickle that would execute something."""
    return BundleError(
        f'"{path}" was refused, and nothing in it was executed: {error}, which no checkpoint or feature file needs; '
        "get the file again from a source that you trust",
        code="unsafe_pickle",
    )


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def _checked_pickle(path: Path) -> tuple[bool, bytes]:
    """Steps 1 and 2: whether the file is an archive, and the bytes of the pickle with the content."""
    if _is_archive(path):
        content = _archived_pickle(path)
        scan_pickle(io.BytesIO(content))
        return True, content
    starts = [0]
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            scan_pickle(file)
            starts.append(file.tell())
        file.seek(starts[_LEGACY_CONTENT])
        return False, file.read(starts[_LEGACY_CONTENT + 1] - starts[_LEGACY_CONTENT])


def _archived_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        pickles = [info.filename for info in entries if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleBroken("the archive does not hold one data.pkl")
        if any(info.filename.endswith("/constants.pkl") for info in entries):
            raise PickleBroken("it is a TorchScript archive, which is a program; save the model's state dict")
        for info in entries:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise PickleBroken(f"entry {info.filename} is compressed or encrypted")
        return archive.read(pickles[0])


def _load(path: Path, content: bytes, *, mmap: bool) -> Any:
    """Step 3."""
    with _LOCK, safe_globals(stand_ins(_foreign_names(content))), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about old storage classes and protocols
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _foreign_names(content: bytes) -> list[str]:
    """Names in a pickle that torch does not know; an archive around it makes legacy files readable for torch too."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
    archive.seek(0)
    return get_unsafe_globals_in_checkpoint(archive)


def _overlaps(tensor: Tensor) -> bool:
    """Whether a tensor covers a number twice: sorted by stride, each axis must step over all before it."""
    if tensor.numel() == 0:
        return False
    axes = sorted(axis for axis in zip(tensor.stride(), tensor.shape, strict=True) if axis[1] > 1)
    return any(stride <= 0 for stride, _ in axes) or any(
        stride * size > next_stride for (stride, size), (next_stride, _) in pairwise(axes)
    )


def _reason(error: Exception) -> str:
    """The last line of torch's message that is not advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "documentation" not in line]
    return lines[-1][:200] if lines else type(error).__name__
