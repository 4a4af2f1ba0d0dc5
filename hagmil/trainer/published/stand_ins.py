"""Inert objects in place of the foreign classes and functions that a checkpoint names.

``torch.load(weights_only=True)`` makes objects only of classes that it knows or that are registered for it. Under the
names in a file these are registered, so that nothing foreign is imported or executed:

1. For a class (the last part of its name begins with a capital, or it is on the list below): a class whose objects
   drop all arguments and state.
2. For a dictionary or list class (its name ends so, as Lightning's ``AttributeDict``): a plain dictionary or list,
   because torch adds items to no other. The modules of torch with such names are classes as in 1.
3. For any other name, taken for a function: an object that refuses the file if it is called. ``torch.float32`` and
   functions that are only mentioned are such values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from hagmil.trainer.published.pickles import PickleRefused, check_name

_LOWER_CASE_TEXT = """
    builtins.bool builtins.dict builtins.float builtins.int builtins.list builtins.object builtins.range
    builtins.slice builtins.str builtins.tuple
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone numpy.dtype numpy.ndarray
    copyreg._reconstructor logging.getLogger operator.getitem _operator.getitem
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
"""
_LOWER_CASE_CLASSES = frozenset(_LOWER_CASE_TEXT.split())
"""Classes whose names begin with a small letter, and functions that only make an object."""


class StandIn:
    """A class of the file, and its objects; arguments and state are dropped.

    Args:
        path: dotted path of the class in the file.
    """

    path: ClassVar[str]

    def __new__(cls, *_arguments: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class FunctionStandIn:
    """A function of the file; calling it refuses the file.

    Args:
        path: dotted path of the function in the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *_arguments: Any) -> Any:
        raise PickleRefused(f"it calls {self.path}")


def stand_ins(paths: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The stand-ins for the names in a file, as :class:`torch.serialization.safe_globals` takes them.

    Args:
        paths: dotted paths.

    Raises:
        PickleRefused: a name of the interpreter or the operating system.
    """
    for path in paths:
        check_name(path)
    return [(_stand_in(path), path) for path in paths]


def _stand_in(path: str) -> Callable[..., Any]:
    if path in _SPECIAL:
        return _SPECIAL[path]
    if path.endswith("Dict") and not path.startswith("torch."):
        return OrderedDict
    if path.endswith("List") and not path.startswith("torch."):
        return list
    if path in _LOWER_CASE_CLASSES or _is_class(path):
        return _class_stand_in(path)
    return FunctionStandIn(path)


def _class_stand_in(path: str) -> type[StandIn]:
    return type(path.rpartition(".")[2], (StandIn,), {"path": path})


def _is_class(path: str) -> bool:
    return path.rpartition(".")[2].lstrip("_")[:1].isupper()


def _bytes(*arguments: Any) -> bytes:
    if arguments:
        raise PickleRefused("it calls builtins.bytes")  # of a number it would allocate as many bytes
    return b""


def _attribute(owner: Any, name: Any) -> type[StandIn]:
    """A class within a class, as protocol 2 names it; everything else would be a step to a call."""
    if not (isinstance(owner, type) and issubclass(owner, StandIn)):
        raise PickleRefused("it calls builtins.getattr")
    path = f"{owner.path}.{name}"
    check_name(path)
    if not _is_class(path):
        raise PickleRefused(f"it names {path}")
    return _class_stand_in(path)


_SPECIAL: dict[str, Callable[..., Any]] = {
    "builtins.bytes": _bytes,
    "builtins.frozenset": frozenset,
    "builtins.getattr": _attribute,
    "collections.defaultdict": lambda *_arguments: {},
    "collections.deque": lambda *_arguments: [],
}
