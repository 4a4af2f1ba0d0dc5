"""Recorded signatures of bindings that are not installed, and modules made from them.

``python -m tests.fakes.recorded`` records the bindings that can be imported again. The bindings of the data-centre
TensorRT can only be imported together with its libraries.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.fakes.gpu import Gpu
from tests.fakes.tensorrt import fake_tensorrt

RECORDS = Path(__file__).with_name("recorded_signatures.json")
CUPY_NAMES = (
    "ndarray.set",
    "ndarray.get",
    "empty",
    "asarray",
    "ascontiguousarray",
    "cuda.alloc",
    "cuda.alloc_pinned_memory",
    "cuda.Event.synchronize",
    "cuda.MemoryPointer",
    "cuda.UnownedMemory",
    "cuda.get_current_stream",
    "cuda.Stream",
    "cuda.Stream.record",
    "cuda.Stream.wait_event",
    "cuda.Stream.synchronize",
    "cuda.Device",
)
"""Functions of cupy that hagmil calls. ``ndarray`` itself has no machine-readable signature."""
CUPY_ATTRIBUTES = (
    "ndarray.__cuda_array_interface__",
    "ndarray.__getitem__",
    "ndarray.__len__",
    "ndarray.__setitem__",
    "cuda.Device.compute_capability",
    "cuda.memory.OutOfMemoryError",
    "cuda.runtime.CUDARuntimeError",
)
"""Attributes and exceptions of cupy that hagmil uses."""


def read_records() -> dict[str, Any]:
    """Return the records by module."""
    records: dict[str, Any] = json.loads(RECORDS.read_text())
    return records


def recorded_tensorrt() -> ModuleType:
    """Return the recorded data-centre bindings: classes, docstrings and enumerations, without implementations."""
    record = read_records()["tensorrt"]
    module = ModuleType("tensorrt")
    for name, members in record["enums"].items():
        setattr(module, name, enum.IntEnum(name, members))
    for name, names in record["classes"].items():
        contents: dict[str, Any] = {method: _documented(text) for method, text in names["methods"].items()}
        for attribute, settable in names["properties"].items():
            contents[attribute] = property(_documented(""), _documented("") if settable else None)
        setattr(module, name, type(name, (), contents))
    return module


def parameter_names(function: Any) -> list[tuple[str, bool]]:
    """Return name and optionality of each parameter, from the signature or the docstring."""
    try:
        parameters = inspect.signature(function).parameters.values()
        return [(one.name, one.default is not one.empty) for one in parameters if one.name != "self"]
    except ValueError:
        first = (inspect.getdoc(function) or "").splitlines()[0]
        inside = first[first.index("(") + 1 : first.rindex(")")]
        words = [word.strip() for word in inside.split(",") if word.strip() not in ("self", "")]
        return [(re.sub(r"^(?:\w+ )?(\w+)(?:=.*)?$", r"\1", word), "=" in word) for word in words]


def find(module: ModuleType, path: str) -> Any:
    """Return the object at a dotted path in a module."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _documented(text: str) -> Any:
    def function() -> None:
        """Replaced below."""

    function.__doc__ = text
    return function


def _record_tensorrt(real: ModuleType) -> dict[str, Any]:
    enums: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for name, kind in vars(fake_tensorrt(Gpu())).items():
        if not isinstance(kind, type):
            continue
        other = getattr(real, name)
        if issubclass(kind, enum.Enum):
            enums[name] = {member: int(value) for member, value in other.__members__.items()}
        else:
            classes[name] = _record_class(kind, other)
    return {"version": str(real.__version__), "enums": enums, "classes": classes}


def _record_class(fake: type, real: type) -> dict[str, Any]:
    methods: dict[str, str] = {}
    properties: dict[str, bool] = {}
    for name in sorted({name for base in fake.__mro__[:-1] for name in vars(base)} | {"__init__"}):
        value = inspect.getattr_static(real, name, None)
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, property):
            properties[name] = value.fset is not None
        elif value is not None:
            lines = (inspect.getdoc(getattr(real, name)) or "").splitlines()
            methods[name] = "\n".join(line for line in lines if re.match(rf"(\d+\. )?{name}\(.* -> ", line))
    return {"methods": methods, "properties": properties}


def _record_cupy(real: ModuleType) -> dict[str, Any]:
    names = {path: parameter_names(find(real, path)) for path in CUPY_NAMES}
    attributes = [path for path in CUPY_ATTRIBUTES if find(real, path) is not None]
    return {"version": str(real.__version__), "names": names, "attributes": attributes}


def _main() -> None:
    records = read_records() if RECORDS.is_file() else {}
    for name, record in (("tensorrt", _record_tensorrt), ("cupy", _record_cupy)):
        try:
            real = importlib.import_module(sys.argv[1] if name == "tensorrt" and len(sys.argv) > 1 else name)
        except ImportError:
            continue
        records[name] = record(real)
    RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    _main()
