"""Signatures of compiled bindings, read from what they say of themselves, and of the fakes that stand for them."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

_PLAIN = {
    "typing.SupportsInt": "int",
    "typing_extensions.Buffer": "bytes",
    "list[str]": "list[str]",
    "nvonnxparser::IParserError": "ParserError",  # the C++ name of what Python sees as ParserError
}
_CONVERTED = {("tuple", "Dims")}  # a tuple goes in where the binding says Dims; the real builds show it


class Overload:
    """One way to call a function: names and types of its arguments, and what it gives.

    Args:
        parameters: (name, type, whether it may be left out) of each, without ``self``.
        returns: the type that it gives.
    """

    def __init__(self, parameters: list[tuple[str, str, bool]], returns: str) -> None:
        self.parameters, self.returns = parameters, returns

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}: {kind}{' = ...' if free else ''}" for name, kind, free in self.parameters)
        return f"({arguments}) -> {self.returns}"


def bound_overloads(function: object, name: str) -> list[Overload]:
    """The overloads of a function of a pybind11 module, from its docstring."""
    text = inspect.getdoc(function) or ""
    return [_parsed(arguments, returns) for arguments, returns in _lines(text, name)]


def fake_overload(function: object) -> Overload:
    """The signature of a fake's method, from its annotations."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        (name, _word(str(parameter.annotation)), parameter.default is not inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return Overload(parameters, _word(str(signature.return_annotation)))


def is_covered(fake: Overload, real: Overload) -> bool:
    """Whether every call that the fake takes is one that the real function takes, and gives the same type."""
    shared, more = real.parameters[: len(fake.parameters)], real.parameters[len(fake.parameters) :]
    names_agree = [name for name, _, _ in fake.parameters] == [name for name, _, _ in shared]
    types_agree = all(
        given == wanted or (given, wanted) in _CONVERTED
        for (_, given, _), (_, wanted, _) in zip(fake.parameters, shared, strict=False)
    )
    optional_alike = all(
        wanted or not given for (*_, given), (*_, wanted) in zip(fake.parameters, shared, strict=False)
    )
    return names_agree and types_agree and optional_alike and all(free for *_, free in more) and _gives(fake, real)


def differences(fake: ModuleType, real: ModuleType) -> list[str]:
    """Everything of a fake module that the real one has not, or has otherwise."""
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
                yield f".{member.name}: no such member, or another number"
        return
    for name in sorted(_own_names(fake)):
        mine = inspect.getattr_static(fake, name)
        theirs = inspect.getattr_static(real, name, None)
        if isinstance(mine, property):
            if not isinstance(theirs, property) or (mine.fset is not None and theirs.fset is None):
                yield f".{name}: no such property, or not to be set"
            continue
        overloads = bound_overloads(getattr(real, name, None), name)
        if not any(is_covered(fake_overload(mine), overload) for overload in overloads):
            yield f".{name}: {fake_overload(mine)} is none of {overloads}"


def _own_names(kind: type) -> set[str]:
    """Public methods and properties of a fake's class, and the constructor where callers use it."""
    bases = [base for base in kind.__mro__ if base.__module__ == "tests.fakes.tensorrt"]
    names = {name for base in bases for name, value in vars(base).items() if _is_public(name, value)}
    constructor = getattr(kind, "__init__", None)
    return names | ({"__init__"} if hasattr(constructor, "__wrapped__") else set())


def _is_public(name: str, value: object) -> bool:
    return not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))


def _gives(fake: Overload, real: Overload) -> bool:
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
    """Parts between the commas that stand in no brackets."""
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
    """A type's name without its module; numbers and buffers as Python's."""
    kind = kind.strip().strip("'\"")
    if kind in _PLAIN:
        return _PLAIN[kind]
    return re.sub(r"[\w.]*(?:\.|::)(\w+)", r"\1", kind)
