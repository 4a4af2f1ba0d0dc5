"""Signatures of compiled bindings, from their docstrings, and of the fakes that replace them."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

_PYTHON_TYPES = {
    "typing.SupportsInt": "int",
    "typing_extensions.Buffer": "bytes",
    "list[str]": "list[str]",
    "nvonnxparser::IParserError": "ParserError",  # the C++ name of ParserError
}
_CONVERTED = {("tuple", "Dims")}  # the bindings accept a tuple for Dims


class Overload:
    """One overload of a function: names and types of its parameters, and its return type.

    Args:
        parameters: (name, type, whether it is optional) of each parameter except ``self``.
        returns: the return type.
    """

    def __init__(self, parameters: list[tuple[str, str, bool]], returns: str) -> None:
        self.parameters, self.returns = parameters, returns

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{name}: {kind}{' = ...' if optional else ''}" for name, kind, optional in self.parameters
        )
        return f"({arguments}) -> {self.returns}"


def bound_overloads(function: object, name: str) -> list[Overload]:
    """Return the overloads of a function of a pybind11 module, from its docstring."""
    text = inspect.getdoc(function) or ""
    return [_parsed(arguments, returns) for arguments, returns in _lines(text, name)]


def fake_overload(function: object) -> Overload:
    """Return the signature of a method of a fake, from its annotations."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        (name, _word(str(parameter.annotation)), parameter.default is not inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return Overload(parameters, _word(str(signature.return_annotation)))


def is_covered(fake: Overload, real: Overload) -> bool:
    """Return whether the real function accepts every call that the fake accepts, with the same return type."""
    shared, more = real.parameters[: len(fake.parameters)], real.parameters[len(fake.parameters) :]
    names_agree = [name for name, _, _ in fake.parameters] == [name for name, _, _ in shared]
    types_agree = all(
        given == wanted or (given, wanted) in _CONVERTED
        for (_, given, _), (_, wanted, _) in zip(fake.parameters, shared, strict=False)
    )
    optional_alike = all(
        wanted or not given for (*_, given), (*_, wanted) in zip(fake.parameters, shared, strict=False)
    )
    return (
        names_agree
        and types_agree
        and optional_alike
        and all(optional for *_, optional in more)
        and _returns_same(fake, real)
    )


def differences(fake: ModuleType, real: ModuleType) -> list[str]:
    """Return everything in a fake module that is missing or different in the real module."""
    found: list[str] = []
    for name, kind in vars(fake).items():
        if isinstance(kind, type):
            other = getattr(real, name, None)
            found += [f"no {name}"] if other is None else [f"{name}{text}" for text in _class_differences(kind, other)]
    return found


def _class_differences(fake: type, real: type) -> Iterator[str]:
    if issubclass(fake, enum.Enum):
        members = getattr(real, "__members__", {})
        for member in fake:
            if member.name not in members or int(members[member.name]) != int(member.value):
                yield f".{member.name}: missing member, or different value"
        return
    for name in sorted(_own_names(fake)):
        mine = inspect.getattr_static(fake, name)
        theirs = inspect.getattr_static(real, name, None)
        if isinstance(mine, property):
            if not isinstance(theirs, property) or (mine.fset is not None and theirs.fset is None):
                yield f".{name}: missing property, or not settable"
            continue
        overloads = bound_overloads(getattr(real, name, None), name)
        if not any(is_covered(fake_overload(mine), overload) for overload in overloads):
            yield f".{name}: {fake_overload(mine)} does not match any of {overloads}"


def _own_names(kind: type) -> set[str]:
    """Public methods and properties of a class of a fake, and its constructor if callers use it."""
    bases = [base for base in kind.__mro__ if base.__module__ == "tests.fakes.tensorrt"]
    names = {name for base in bases for name, value in vars(base).items() if _is_public(name, value)}
    constructor = getattr(kind, "__init__", None)
    return names | ({"__init__"} if hasattr(constructor, "__wrapped__") else set())


def _is_public(name: str, value: object) -> bool:
    return not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))


def _returns_same(fake: Overload, real: Overload) -> bool:
    given = fake.returns.removesuffix(" | None")
    shapes = {"tuple[int, ...]": "Dims", "list[tuple[int, ...]]": "list[Dims]"}
    return shapes.get(given, given) == real.returns


def _lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", text, re.MULTILINE):
        yield match[1], match[2]


def _parsed(arguments: str, returns: str) -> Overload:
    parameters: list[tuple[str, str, bool]] = []
    for part in _split(arguments):
        name, _, rest = part.partition(": ")
        if name != "self":
            kind, equals, _ = rest.partition(" = ")
            parameters.append((name, _word(kind), bool(equals)))
    return Overload(parameters, _word(returns))


def _split(arguments: str) -> Iterator[str]:
    """Split at commas outside brackets."""
    depth, part = 0, ""
    for letter in arguments:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += letter
    if part.strip():
        yield part.strip()


def _word(kind: str) -> str:
    """Name of a type without its module; numbers and buffers as in Python."""
    kind = kind.strip().strip("'\"")
    if kind in _PYTHON_TYPES:
        return _PYTHON_TYPES[kind]
    return re.sub(r"[\w.]*(?:\.|::)(\w+)", r"\1", kind)
