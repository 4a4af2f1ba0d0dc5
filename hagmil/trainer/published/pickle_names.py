"""What a name in a pickle may become, when nothing is executed.

1. **A name of plain data** (``PLAIN_DATA``, and what the reader of a format adds for its tensors): a fixed
   list of containers and rebuild functions. Where the file calls one, a function of ours builds the value
   from plain arguments, or drops them where no checkpoint needs the value.
2. **A name that reaches the interpreter or the machine** (a module in ``_REFUSED_MODULES``, so all of
   builtins that is not plain data; a dotted name that climbs through such a module; a dunder): the file is
   refused where the name stands, called or not.
3. **A class that we do not know** (the last part of its name begins with a capital): inert. The class itself
   and every object of it carry the name and nothing else; arguments, state and items are dropped.
4. **Any other name** is taken for a function. Held as a value it is inert too (``torch.float32`` is such a
   value); called, the file is refused.

Nothing is imported under any of these rules. That a dangerous name is refused, and not just left inert, is
for the user: such a file was made to do harm, and its weights deserve no trust either.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

Builder = Callable[[tuple[Any, ...]], Any]
"""Makes a value of the arguments of a call in the file; ValueError where they are not what it expects."""

_REFUSED_MODULE_NAMES = """
    __builtin__ builtins
    _ctypes cffi ctypes gc inspect marshal operator _operator sys sysconfig types
    _imp imp importlib _frozen_importlib pkgutil runpy zipimport
    _pickle cPickle cloudpickle dill joblib pickle shelve
    code codeop compileall py_compile distutils doctest ensurepip pip pkg_resources pydoc setuptools unittest
    bdb cProfile pdb profile rlcompleter timeit trace venv
    nt ntpath os posix posixpath platform pty resource signal site winreg
    _io dbm fileinput glob io linecache mmap shutil sqlite3 tarfile tempfile zipapp zipfile
    _posixsubprocess asyncio commands multiprocessing pexpect popen2 subprocess
    _socket aiohttp ftplib http httpx imaplib nntplib poplib requests smtplib socket socketserver ssl
    telnetlib urllib urllib2 urllib3 webbrowser xmlrpc
"""
_REFUSED_MODULES = frozenset(_REFUSED_MODULE_NAMES.split())


class PickleRefused(ValueError):
    """The pickle would execute something; the message names it."""


class PickleBroken(ValueError):
    """Not a pickle, or not one of plain data."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the file names; it was never imported."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """An object of a class that we do not know; what it held was dropped."""

    path: str


def checked_name(module: str, name: str, builders: Mapping[str, Builder]) -> Name:
    """A name that may stand in a file.

    Args:
        module: as the file has it.
        name: as the file has it, perhaps with dots.
        builders: what the file may call, by dotted path.

    Raises:
        PickleRefused: rule 2.
    """
    path = f"{module}.{name}"
    if path in builders:
        return Name(path)
    *climbed, _ = name.split(".")
    dunder = any(part.startswith("__") and part.endswith("__") for part in name.split("."))
    if dunder or module.split(".")[0] in _REFUSED_MODULES or not _REFUSED_MODULES.isdisjoint(climbed):
        raise PickleRefused(f"it names {path}")
    return Name(path)


def called(callee: Any, arguments: Any, builders: Mapping[str, Builder]) -> Any:
    """What a call in the file gives: rules 1, 3 and 4.

    Raises:
        PickleRefused: it calls a function that is not on the list, or something that is no name.
        PickleBroken: its arguments are no tuple.
    """
    if not isinstance(callee, Name):
        raise PickleRefused("it calls a value that is no name")
    if not isinstance(arguments, tuple):
        raise PickleBroken(f"{callee.path} is called with arguments that are no tuple")
    if callee.path in builders:
        return builders[callee.path](arguments)
    if _looks_like_a_class(callee.path):
        return Inert(callee.path)
    raise PickleRefused(f"it calls {callee.path}")


def key(value: Any) -> Hashable:
    """A value that may be a key: flat, since to hash tuples nested without end would exhaust the stack."""
    flat = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, str | bytes | int | float | Name | Inert | None) for part in flat):
        raise ValueError(f"a {type(value).__name__} as a key")
    hashable: Hashable = value
    return hashable


def dict_of(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A dictionary of another one, or of pairs; empty without arguments."""
    if not arguments:
        return {}
    pairs = arguments[0].items() if isinstance(arguments[0], dict) else _sequence(arguments[0])
    return {key(name): value for name, value in pairs}


def set_of(arguments: tuple[Any, ...]) -> set[Any]:
    """A set of a sequence; empty without arguments."""
    return {key(value) for value in _list_of(arguments)}


def _list_of(arguments: tuple[Any, ...]) -> list[Any]:
    return list(_sequence(arguments[0])) if arguments else []


def _bytes_of(arguments: tuple[Any, ...]) -> bytes:
    """Bytes as protocols below 3 write them: text in Latin-1, and the name of that encoding."""
    if not arguments:
        return b""
    value = arguments[0]
    if isinstance(value, str):
        return value.encode("latin-1")
    return bytes(value if isinstance(value, bytes | bytearray) else _sequence(value))


def _sequence(value: Any) -> Any:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError(f"a {type(value).__name__} where a sequence should be")
    return value


def _object_of(arguments: tuple[Any, ...]) -> Inert:
    """What protocols 0 and 1 write for an object: its class comes first."""
    if not arguments or not isinstance(arguments[0], Name):
        raise ValueError("an object without a class")
    return Inert(arguments[0].path)


def _attribute_of(arguments: tuple[Any, ...]) -> Name:
    """How protocols below 4 name a class within a class; of anything but a name it would be a step to a call."""
    match arguments:
        case (Name(path), str(name)):
            return checked_name(path, name, {})
    raise PickleRefused("it calls builtins.getattr")


def _inert(path: str) -> Builder:
    return lambda _arguments: Inert(path)


def _looks_like_a_class(path: str) -> bool:
    return path.rsplit(".", 1)[-1].lstrip("_")[:1].isupper()


_BUILTINS: dict[str, Builder] = {
    "list": _list_of,
    "tuple": lambda arguments: tuple(_list_of(arguments)),
    "dict": dict_of,
    "set": set_of,
    "frozenset": lambda arguments: frozenset(set_of(arguments)),
    "bytes": _bytes_of,
    "bytearray": _bytes_of,
    "getattr": _attribute_of,
    **{kind: _inert(kind) for kind in ("bool", "complex", "float", "int", "object", "range", "slice", "str")},
}

_DROPPED_NAMES = """
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
    logging.getLogger operator.getitem _operator.getitem types.SimpleNamespace
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    numpy.dtype numpy.ndarray torch.device
"""

PLAIN_DATA: dict[str, Builder] = {
    **{f"{module}.{kind}": make for module in ("builtins", "__builtin__") for kind, make in _BUILTINS.items()},
    "_codecs.encode": _bytes_of,
    "collections.Counter": dict_of,
    "collections.OrderedDict": dict_of,
    "collections.defaultdict": lambda _arguments: {},
    "collections.deque": _list_of,
    **{
        f"{module}.{function}": _object_of
        for module in ("copyreg", "copy_reg")
        for function in ("_reconstructor", "__newobj__")
    },
    "torch.Size": lambda arguments: tuple(_list_of(arguments)),
    **{path: _inert(path) for path in _DROPPED_NAMES.split()},
}
"""What any file may call, and what we make of the call."""
