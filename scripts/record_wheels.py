"""Record what the GPU packages contain and need: ``python scripts/record_wheels.py SITE_PACKAGES...``.

Reads the shared objects of the packages that are installed in the given folders, and writes tests/data/wheels.json:

- the version of each package;
- the names of the shared libraries that it contains (``provides``);
- the libraries of other packages, or of the driver, that its shared objects need (``needs``: their ``NEEDED`` entries);
- the compute capabilities that ONNX Runtime's CUDA provider contains code for (``capabilities``).

A test compares the file with constraints.txt, with the table in docs/gpu.md, and with the libraries that hagmil loads.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parents[1] / "tests" / "data" / "wheels.json"
PACKAGES = (
    "onnxruntime-gpu",
    "cupy-cuda13x",
    "tensorrt_cu13_bindings",
    "tensorrt_rtx_cu13_bindings",
    "tensorrt_rtx_cu13_libs",
    "nvidia-cublas",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-cudnn-cu13",
    "nvidia-cufft",
    "nvidia-curand",
    "nvidia-nvjitlink",
)
_CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"
_SHARED_OBJECT = re.compile(r".+\.so(\.\d+)*")
_OF_THE_SYSTEM = re.compile(r"(ld-linux.*|lib(c|dl|m|rt|pthread|gcc_s|stdc\+\+|z))\.so\.\d+")
_OPTIONAL_IN_CUPY = re.compile(r"lib(cusolver|cusparse|cutensor|cutensorMg|nccl)\.so\.\d+")  # hagmil calls none of them
_DYNAMIC, _STRINGS_OF = 6, 40  # the section type of dynamic entries, and the offset of sh_link in a section header
_NEEDED, _END = 1, 0
_FATBIN = b"\x50\xed\x55\xba"
_MACHINE_CODE = 2  # the kind of an entry in a fatbin


def needed_libraries(path: Path) -> tuple[str, ...]:
    """The ``NEEDED`` entries of a 64-bit little-endian ELF file, without the libraries of the system."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            return ()
        (table,) = struct.unpack_from("<Q", data, 40)
        size, count = struct.unpack_from("<HH", data, 58)
        sections = [table + index * size for index in range(count)]
        names = [name for section in sections for name in _needed_in(data, sections, section)]
    return tuple(sorted(name for name in names if not _OF_THE_SYSTEM.fullmatch(name)))


def _needed_in(data: mmap.mmap, sections: list[int], section: int) -> Iterator[str]:
    """The ``NEEDED`` entries of one section."""
    (kind,) = struct.unpack_from("<I", data, section + 4)
    if kind != _DYNAMIC:
        return
    start, _ = struct.unpack_from("<QQ", data, section + 24)
    (link,) = struct.unpack_from("<I", data, section + _STRINGS_OF)
    (strings,) = struct.unpack_from("<Q", data, sections[link] + 24)
    while True:
        tag, value = struct.unpack_from("<QQ", data, start)
        if tag == _END:
            return
        if tag == _NEEDED:
            end = data.find(b"\0", strings + value)
            yield data[strings + value : end].decode()
        start += 16


def machine_code(path: Path) -> tuple[str, ...]:
    """The compute capabilities that the fatbins of a library contain machine code for, ascending."""
    found: set[int] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_FATBIN)
        while start >= 0:
            version, header, size = struct.unpack_from("<HHQ", data, start + 4)
            if (version, header) == (1, 16):
                found |= set(_entries(data, start + header, start + header + size))
            start = data.find(_FATBIN, start + 4)
    return tuple(f"{number // 10}.{number % 10}" for number in sorted(found))


def _entries(data: mmap.mmap, start: int, end: int) -> Iterator[int]:
    """The architecture of each entry with machine code of a fatbin."""
    while start < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, start)
        (architecture,) = struct.unpack_from("<I", data, start + 28)
        if kind == _MACHINE_CODE:
            yield architecture
        start += header + size


def record(package: Distribution) -> dict[str, Any]:
    """The entry of one installed package."""
    paths = [Path(str(file.locate())) for file in package.files or () if _SHARED_OBJECT.fullmatch(file.name)]
    entry: dict[str, Any] = {"version": package.version}
    libraries = sorted(path.name for path in paths if path.name.startswith("lib"))
    needs = {path.name: names for path in paths if (names := _needs_of_others(path, {each.name for each in paths}))}
    if libraries:
        entry["provides"] = libraries
    if package.name == "cupy-cuda13x":  # hundreds of modules with the same needs
        entry["needs"] = sorted({name for names in needs.values() for name in names})
    elif needs:
        entry["needs"] = dict(sorted(needs.items()))
    for path in paths:
        if path.name == _CUDA_PROVIDER:
            entry["capabilities"] = machine_code(path)
    return entry


def _needs_of_others(path: Path, own: set[str]) -> tuple[str, ...]:
    return tuple(name for name in needed_libraries(path) if name not in own and not _OPTIONAL_IN_CUPY.fullmatch(name))


def main(folders: list[str]) -> None:
    """Write the record of all packages."""
    found = {each.name: each for each in distributions(path=folders) if each.name in PACKAGES}
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        raise SystemExit(f"not installed in {', '.join(folders)}: {', '.join(missing)}")
    RECORD.write_text(json.dumps({name: record(found[name]) for name in PACKAGES}, indent=2) + "\n")
    print(f"wrote {RECORD}")


if __name__ == "__main__":
    main(sys.argv[1:])
