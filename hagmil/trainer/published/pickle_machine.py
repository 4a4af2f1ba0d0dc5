"""Reading a pickle of which nothing is executed.

A pickle is a program for a small stack machine. Python's own machine imports the names in it and calls them;
this one has no instruction that imports, calls or sets an attribute of anything. A name in the file stays a
name, and a call gives what :mod:`hagmil.trainer.published.pickle_names` says: a plain value, an inert object, or a
refusal. The state that a file sets on an object is dropped. Instructions that plain data do not need
(extension codes, buffers out of band) end the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

from hagmil.trainer.published.pickle_names import (
    PLAIN_DATA,
    Builder,
    Inert,
    Name,
    PickleBroken,
    PickleRefused,
    called,
    checked_name,
    dict_of,
    set_of,
)


def read_pickle(
    file: IO[bytes],
    *,
    builders: Mapping[str, Builder] | None = None,
    persistent: Builder | None = None,
) -> Any:
    """Read one pickle as plain data.

    Args:
        file: open at the pickle's first byte; afterwards it stands right behind its last.
        builders: further names that the file may call, by their dotted path.
        persistent: makes a value of a persistent id (torch's storages); without it there must be none.

    Returns:
        Plain containers, numbers and strings, names and inert objects, and what the builders made.

    Raises:
        PickleRefused: it would execute something.
        PickleBroken: it cannot be read.
    """
    machine = _Machine({**PLAIN_DATA, **(builders or {})}, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
    except (PickleRefused, PickleBroken):
        raise
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise PickleBroken(f"not a pickle of plain data: {error}") from error
    return machine.result


class _Machine:
    """The stack machine: ``step`` does one instruction."""

    def __init__(self, builders: Mapping[str, Builder], persistent: Builder | None) -> None:
        self.builders = builders
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None
        self.instructions: dict[str, Callable[[Any], object]] = {
            "MARK": self._mark,
            "STOP": self._stop,
            "POP": self._pop,
            "POP_MARK": lambda _: self._to_mark(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
            "LIST": lambda _: self._push(self._to_mark()),
            "TUPLE": lambda _: self._push(tuple(self._to_mark())),
            "TUPLE1": lambda _: self._push(tuple(self._top(1))),
            "TUPLE2": lambda _: self._push(tuple(self._top(2))),
            "TUPLE3": lambda _: self._push(tuple(self._top(3))),
            "DICT": lambda _: self._push(dict_of((_pairs(self._to_mark()),))),
            "FROZENSET": lambda _: self._push(frozenset(set_of((self._to_mark(),)))),
            "APPEND": lambda _: self._extend(self._top(1)),
            "APPENDS": lambda _: self._extend(self._to_mark()),
            "SETITEM": lambda _: self._set_items(self._top(2)),
            "SETITEMS": lambda _: self._set_items(self._to_mark()),
            "ADDITEMS": lambda _: self._add_items(self._to_mark()),
            "MEMOIZE": lambda _: self._remember(len(self.memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._recall),
            "PERSID": self._identify,
            "BINPERSID": lambda _: self._identify(*self._top(1)),
            "GLOBAL": lambda names: self._push(self._name(*names.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._push(self._name(*self._top(2))),
            "REDUCE": lambda _: self._call(*self._top(2)),
            "INST": lambda names: self._call(self._name(*names.split(" ", 1)), tuple(self._to_mark())),
            "OBJ": lambda _: self._make_old(self._to_mark()),
            "NEWOBJ": lambda _: self._make(self._top(2)),
            "NEWOBJ_EX": lambda _: self._make(self._top(3)),
            "BUILD": lambda _: self._top(1),
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
        }

    def step(self, instruction: str, argument: Any) -> None:
        """Do one instruction, with the argument that stands behind it in the file."""
        if instruction in _LITERALS:
            self.stack.append(argument)
        elif instruction in _CONSTANTS:
            self.stack.append(_CONSTANTS[instruction]())
        elif instruction in self.instructions:
            self.instructions[instruction](argument)
        else:
            raise PickleBroken(f"instruction {instruction} has no place in plain data")

    # The stack and its marks.

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _top(self, count: int) -> list[Any]:
        """Take the ``count`` uppermost values, lowest first."""
        if len(self.stack) < count:
            raise PickleBroken("the stack is empty before its time")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _mark(self, _argument: Any) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        values = self.stack
        self.stack = self.below_marks.pop()
        return values

    def _pop(self, _argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    def _stop(self, _argument: Any) -> None:
        self.result = self.stack.pop()

    def _remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # Containers; what is put into an inert object is dropped.

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise PickleBroken(f"items added to a {type(target).__name__}")

    def _set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(dict_of((_pairs(flat),)))
        elif not isinstance(target, Inert):
            raise PickleBroken(f"keys set on a {type(target).__name__}")

    def _add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(set_of((values,)))
        elif not isinstance(target, Inert):
            raise PickleBroken(f"members added to a {type(target).__name__}")

    # Names, and what the file does with them.

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleBroken("a name that is no text")
        return checked_name(module, name, self.builders)

    def _call(self, callee: Any, arguments: Any) -> None:
        self._push(called(callee, arguments, self.builders))

    def _make_old(self, class_and_arguments: list[Any]) -> None:
        self._call(class_and_arguments[0], tuple(class_and_arguments[1:]))

    def _make(self, class_and_arguments: list[Any]) -> None:
        """An object made past its class's constructor: always inert."""
        if not isinstance(class_and_arguments[0], Name):
            raise PickleRefused("it makes an object of a value that is no name")
        self._push(Inert(class_and_arguments[0].path))

    def _identify(self, identity: Any) -> None:
        if self.persistent is None:
            raise PickleBroken("a persistent id where there can be none")
        self._push(self.persistent(identity if isinstance(identity, tuple) else (identity,)))


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}

_LITERAL_NAMES = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
"""
_LITERALS = frozenset(_LITERAL_NAMES.split())
