"""Type checks for the arguments of fakes, as in bindings that check them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_BUILT_IN: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "bytes": (bytes, memoryview),
    "int": int,
    "list": list,
    "str": str,
    "tuple": tuple,
}


def typed(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Check the arguments of a method against its annotations: built-in types, and types of the fake by name."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            wanted = str(signature.parameters[name].annotation)
            if name != "self" and not any(_is(value, word.strip()) for word in wanted.split("|")):
                raise TypeError(f"{function.__qualname__}: {name} is {type(value).__name__}, not {wanted}")
        return function(*args, **kwargs)

    return checked


def _is(value: object, wanted: str) -> bool:
    if wanted == "None":
        return value is None
    if wanted == "int" and isinstance(value, bool):
        return False
    built_in = _BUILT_IN.get(wanted)
    if built_in is not None:
        return isinstance(value, built_in)
    return wanted in {kind.__name__ for kind in type(value).__mro__}
