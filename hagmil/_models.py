"""The base class of the pydantic models that describe files and configuration, and strict reading of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class FrozenModel(BaseModel):
    """A model that cannot be changed after construction and that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)
_LONGEST_NUMBER = 32  # characters of a message


@dataclass(frozen=True, slots=True)
class Within:
    """Annotation of a number: its smallest and its largest value. The message of a violation gives both.

    Args:
        low: smallest value.
        high: largest value.
    """

    low: float
    high: float

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "minimum": self.low, "maximum": self.high}

    def _check(self, value: float) -> float:
        if not self.low <= value <= self.high:  # also false for NaN
            raise PydanticCustomError(
                "out_of_range",
                "{value} is outside {low} to {high}",
                {"value": str(value)[:_LONGEST_NUMBER], "low": f"{self.low:,}", "high": f"{self.high:,}"},
            )
        return value


def read_json(model: type[Model], text: str | bytes) -> Model:
    """Read a model from JSON without ambiguity.

    Args:
        model: what the text describes.
        text: JSON.

    Raises:
        ValueError: the text is not JSON, does not fit the model, has a key twice in one object, or a number that is not
            finite. ``first_problem`` describes the error.
    """
    try:
        json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return model.model_validate_json(text)


def first_problem(error: Exception) -> str:
    """Return location and message of the first problem of an error of pydantic, JSON or a file, in one line."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return " ".join(f"{where}: {first['msg']}{more}".split())


def _unique(pairs: Sequence[tuple[str, Any]]) -> None:
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f'the key "{key}" occurs twice')
        seen.add(key)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a float")
    return value
