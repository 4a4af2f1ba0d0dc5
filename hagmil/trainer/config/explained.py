"""A configuration as YAML in which a comment explains each key."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

LINE_LENGTH = 120
_INDENT = "  "


def explained_yaml(config: BaseModel) -> str:
    """Write a configuration with the description of each key as a comment above it.

    Args:
        config: a configuration of which all fields are described.

    Returns:
        YAML that loads back to the same configuration. A section that is null is followed by its keys, as comments.
    """
    return "\n".join(_lines(config, config.model_dump(mode="json"), "")) + "\n"


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section, or may be one; None for other fields."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def explanation(field: FieldInfo) -> str:
    """The explanation of a key: its description, or the first line of the docstring of its section."""
    section = section_of(field)
    text = field.description or (section.__doc__ if section else None) or ""
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else ""


def _lines(config: BaseModel, values: dict[str, Any], indent: str) -> Iterator[str]:
    for name, field in type(config).model_fields.items():
        yield from _comment(explanation(field), indent)
        section, value = getattr(config, name), values[name]
        if isinstance(section, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(section, value, indent + _INDENT)
            continue
        yield from _value(name, value, indent)
        absent = section_of(field)
        if absent is not None:
            for key, inner in absent.model_fields.items():
                yield from _comment(f"{_INDENT}{key}: {explanation(inner)}", indent)


def _comment(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(text, LINE_LENGTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False)


def _value(name: str, value: Any, indent: str) -> list[str]:
    """A key with a scalar, a list on one line, or a mapping below it."""
    style = None if isinstance(value, list | tuple) else False
    text = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, width=10**6, allow_unicode=True)
    return [f"{indent}{line}" for line in text.splitlines()]
