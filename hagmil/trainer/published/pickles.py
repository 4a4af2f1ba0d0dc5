"""Checks of pickles before they are read, and a reader of pickled lists that imports nothing.

A pickle is a program that can import and call any function. Each pickle is therefore scanned first, which executes
nothing. :func:`scan_pickle` refuses

- names of the interpreter and of the operating system (:func:`check_name`). The readers would not import them
  anyway, but a file with such a name was made to do harm;
- what makes CPython crash or run out of memory: tuples nested so deeply that hashing them exhausts the C stack, and
  indices of the memo beyond the number of instructions.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING  # module names of Python 2, which pickles of protocol 2 hold
from pathlib import Path
from typing import IO, Any, NoReturn

MAX_TUPLES = 50_000
"""Tuples in one pickle. CPython 3.11 crashes on hashing about 150,000 nested ones; a tensor takes four, not nested."""

_PLAIN_MODULES_TEXT = """
    _codecs abc argparse collections copyreg dataclasses datetime decimal enum fractions logging numbers pathlib
    random string threading time typing uuid weakref zoneinfo
"""
_PLAIN_MODULES = frozenset(_PLAIN_MODULES_TEXT.split())
"""Modules of the standard library whose objects training code keeps in its checkpoints."""
_PLAIN_NAMES_TEXT = """
    _operator.getitem operator.getitem types.SimpleNamespace
    builtins.bool builtins.bytearray builtins.bytes builtins.complex builtins.dict builtins.float builtins.frozenset
    builtins.getattr builtins.int builtins.list builtins.object builtins.range builtins.set builtins.slice
    builtins.str builtins.tuple
"""
_PLAIN_NAMES = frozenset(_PLAIN_NAMES_TEXT.split())
_HASHING_INSTRUCTIONS = frozenset({"DICT", "SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET"})


class PickleRefused(ValueError):
    """The pickle would execute something; the message names it."""


class PickleBroken(ValueError):
    """The file is not a pickle, or not one of plain data."""


def scan_pickle(file: IO[bytes]) -> tuple[frozenset[str], frozenset[str]]:
    """Scan one pickle without executing it.

    Args:
        file: open at the first byte of the pickle; on return it is right behind the last.

    Returns:
        The dotted paths of the classes and functions that the pickle names, and the names of its instructions.

    Raises:
        PickleRefused: it names something of the interpreter or the operating system.
        PickleBroken: it is not a pickle, or is built to exhaust memory or the stack.
    """
    names: set[str] = set()
    instructions: set[str] = set()
    texts = ["", ""]
    count = tuples = 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            count += 1
            instructions.add(opcode.name)
            tuples += opcode.name.startswith("TUPLE")
            if tuples > MAX_TUPLES or ("PUT" in opcode.name and isinstance(argument, int) and argument > count):
                raise PickleBroken("it holds too many tuples, or indices beyond its length")
            if opcode.name == "STACK_GLOBAL":  # of the two texts that were pushed last, as pickle writes it
                names.add(_checked_name(*texts))
            elif opcode.name in ("GLOBAL", "INST"):
                names.add(_checked_name(*str(argument).split(" ", 1)))
            elif isinstance(argument, str):
                texts = [texts[-1], argument]
    except (PickleRefused, PickleBroken):
        raise
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise PickleBroken(f"not a pickle: {error}") from error
    return frozenset(names), frozenset(instructions)


def check_name(path: str) -> None:
    """Refuse a dotted path into the interpreter or the operating system.

    Raises:
        PickleRefused: it is in the standard library and not on the list of plain data, or contains a dunder.
    """
    module, *attributes = path.split(".")
    module = IMPORT_MAPPING.get(module, module)
    dunder = any(part.startswith("__") and part.endswith("__") for part in attributes)
    system = module in sys.stdlib_module_names and module not in _PLAIN_MODULES
    if path not in _PLAIN_NAMES and (dunder or system):
        raise PickleRefused(f"it names {path}")


def read_pickled_list(path: Path) -> Any:
    """Read a pickle of lists, tuples, strings and numbers.

    Args:
        path: the file.

    Returns:
        The content.

    Raises:
        PickleRefused: it names a class or function.
        PickleBroken: it is not a pickle, or holds something else, such as a dictionary.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    names, instructions = scan_pickle(io.BytesIO(data))
    if names:
        raise PickleRefused(f"it names {', '.join(sorted(names))}")
    if not _HASHING_INSTRUCTIONS.isdisjoint(instructions):
        raise PickleBroken("it holds a dictionary or a set")
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except PickleRefused:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise PickleBroken(f"not a pickle of plain data: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise PickleRefused(f"it names {module_name}.{global_name}")


def _checked_name(module: str, name: str = "") -> str:
    path = f"{IMPORT_MAPPING.get(module, module)}.{name}"
    check_name(path)
    return path
