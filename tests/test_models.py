"""JSON is read without ambiguity, and numbers have bounds that messages state."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import ValidationError

from hagmil._models import FrozenModel, Within, first_problem, read_json


class _Box(FrozenModel):
    width: Annotated[int, Within(1, 1000)] = 1
    share: Annotated[float, Within(0, 1)] | None = None
    free: dict[str, float] | None = None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"width": 1, "width": 2}', 'the key "width" occurs twice'),
        ('{"free": {"a": 1, "a": 1}}', 'the key "a" occurs twice'),
        ('{"share": NaN}', "NaN is not a number of JSON"),
        ('{"free": {"a": -Infinity}}', "-Infinity is not a number of JSON"),
        ('{"free": {"a": 1e999}}', "1e999 is too large for a float"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"width": 9223372036854775808}', "width: 9223372036854775808 is outside 1 to 1,000"),
        ('{"width": 1' + "0" * 400 + "}", "width: 1" + "0" * 31 + " is outside 1 to 1,000"),
        ('{"share": -0.5}', "share: -0.5 is outside 0 to 1"),
        ('{"share": 1e308}', "share: 1e+308 is outside 0 to 1"),
    ],
)
def test_ambiguous_json_and_numbers_out_of_bounds_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its subclasses are also caught by readers
        read_json(_Box, text)
    assert first_problem(caught.value) == problem


@pytest.mark.parametrize("text", ["", "{", '"a"', "\ufeff{}", b"\xff\xfe{\0}\0", b"\x80", "1" * 5000, "{} {}"])
def test_text_that_is_not_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(_Box, text)


def test_numbers_within_bounds_are_read_and_the_schema_gives_the_bounds() -> None:
    assert read_json(_Box, b'{"width": 1000, "share": 0}') == _Box(width=1000, share=0.0)
    assert _Box.model_json_schema()["properties"]["width"]["maximum"] == 1000


def test_nan_is_outside_all_bounds() -> None:
    with pytest.raises(ValidationError, match="nan is outside 0 to 1"):
        _Box(share=float("nan"))
