"""Write docs/api.md from the docstrings of the public names. Run it after a change of the API:

    python scripts/make_api_page.py

A test compares the page with what this script makes, and runs the example.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType

from pydantic import BaseModel

import hagmil

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

HEAD = """# Python API

Everything below is imported from `hagmil`. `import hagmil` is quick; parts of the package are imported on first use.
Paths may be given as `str` or `Path`. Files are written only if `out` is given. A loaded model can be used for many
calls and from several threads. All names are typed. `scripts/make_api_page.py` makes this page from the docstrings.

## Example

The example needs the extra `cpu`. It makes a synthetic slide; use a file of your own and your bundle instead. The
[notebook](notebooks/first_slide.ipynb) shows the same with figures.

```python
from pathlib import Path

import hagmil
from hagmil.phantom import PhantomSpec, write_phantom

write_phantom(PhantomSpec(seed=0, label="tumour", size_px=2048), Path("slide.tif"))

model = hagmil.load_model()  # the built-in demonstration model; load_model("bundle") loads yours
result = hagmil.predict_slide("slide.tif", model=model)
if result.status != "ok":
    raise SystemExit(f"{result.code}: {result.message}")
print(result.prediction, result.probabilities)
```

The result contains coordinates and attention as arrays. The patch with the highest attention at the finest stage:

```python
finest = result.attention[-1]
best = finest.attention.argmax()
x, y = finest.coords[best]
print(f"{finest.patch_level0} x {finest.patch_level0} level-0 pixels at ({x}, {y})")
```

Features are extracted with the same backbone, and a stage model runs on features of any source:

```python
features = hagmil.extract("slide.tif", backbone=model, out="features")
bag = hagmil.read_features("features/slide.h5").stages[0]
logits, attention, _ = hagmil.run_bag(model, bag.features, bag.name)
print(logits.shape, attention.shape)
```

Several slides, with files and a table in `results/`; a slide that fails does not stop the run:

```python
for result in hagmil.predict_many(["slide.tif", "missing.tif"], model=model, out="results"):
    print(result.slide_id, result.status, result.prediction or result.message)
again = hagmil.read_result("results/slide")
stages = hagmil.read_attention("results/slide")
```
"""

SECTIONS = {
    "Models": ("load_model", "LoadedModel", "open_bundle", "Bundle"),
    "Prediction": ("predict_slide", "predict_many", "Result", "StageAttention", "read_result", "read_attention"),
    "Features": (
        "extract",
        "Extractor",
        "ExtractOptions",
        "read_features",
        "write_features",
        "SlideFeatures",
        "FeatureHeader",
        "StageFeatures",
        "run_bag",
        "BagOutput",
    ),
    "Errors": (
        "HagmilError",
        "UsageError",
        "DataError",
        "SlideError",
        "SlideRejected",
        "SlideFailed",
        "BundleError",
        "ParityError",
        "EnvironmentLacks",
        "Interrupted",
    ),
}

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"^    (\w+): (.*)$")
_LINE_CHARACTERS = 100


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        if title == "Errors":
            parts.append("[Errors](errors.md) lists the codes of these errors.\n")
            parts.append("".join(_error_rows(names)))
        else:
            parts += [_describe(name) for name in names]
    return "\n".join(parts)


def _describe(name: str) -> str:
    value = getattr(hagmil, name)
    if not inspect.isclass(value):
        return f"### `{name}`\n\n{_code(_signature(name, value))}\n\n{_markdown(value)}"
    parts = [f"### `{name}`\n", _markdown(value)]
    if issubclass(value, BaseModel):
        parts.append(_field_table(value))
    parts += [_describe_member(name, member, kind) for member, kind in _members(value)]
    return "\n".join(parts)


def _members(value: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that a class defines itself."""
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    for name, member in vars(value).items():
        public = not name.startswith("_") and name not in fields and name not in vars(BaseModel)
        if public and isinstance(member, property | classmethod | FunctionType):
            yield name, member


def _describe_member(owner: str, name: str, member: object) -> str:
    if isinstance(member, property):
        return f"#### `{owner}.{name}`\n\n{_markdown(member)}"
    function = member.__func__ if isinstance(member, classmethod) else member
    return f"#### `{owner}.{name}`\n\n{_code(_signature(f'{owner}.{name}', function))}\n\n{_markdown(function)}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _signature(name: str, function: Callable[..., object]) -> str:
    """The signature with annotations as in the source, over several lines if it is long."""
    signature = inspect.signature(function)
    words: list[str] = []
    keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            words.append("*")
        default = "" if parameter.default is parameter.empty else f" = {_literal(parameter.default)}"
        words.append(f"{parameter.name}: {parameter.annotation}{default}")
    line = f"{name}({', '.join(words)}) -> {signature.return_annotation}"
    if len(line) <= _LINE_CHARACTERS:
        return line
    body = "".join(f"    {word},\n" for word in words)
    return f"{name}(\n{body}) -> {signature.return_annotation}"


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _markdown(value: object) -> str:
    """A docstring in Google style as Markdown: sections as headings, arguments as lists."""
    text = inspect.getdoc(value) or ""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    annotations = inspect.get_annotations(value) if inspect.isclass(value) else {}
    types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in annotations.items()}
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        heading, entry = _SECTION.match(line), _ENTRY.match(line)
        if heading:
            section = heading[1]
            title = "Attributes" if section == "Args" and inspect.isclass(value) else section
            lines += [f"**{title}**", ""]
        elif entry and section in ("Args", "Raises"):
            kind = f" (`{types[entry[1]]}`)" if section == "Args" and entry[1] in types else ""
            lines.append(f"- `{entry[1]}`{kind}: {entry[2]}")
        else:
            lines.append(line.removeprefix("    ").replace("    ", "  ") if section else line)
    return "\n".join(lines) + "\n"


def _field_table(model: type[BaseModel]) -> str:
    rows = ["| field | type | meaning |\n", "|---|---|---|\n"]
    for name, annotation in inspect.get_annotations(model).items():
        if name in model.model_fields:
            type_name = str(annotation).replace("|", "\\|")
            rows.append(f"| `{name}` | `{type_name}` | {model.model_fields[name].description or ''} |\n")
    return "".join(rows)


def _error_rows(names: tuple[str, ...]) -> Iterator[str]:
    yield "| class | base class | exit code | meaning |\n|---|---|---|---|\n"
    for name in names:
        error = getattr(hagmil, name)
        meaning = (inspect.getdoc(error) or "").splitlines()[0]
        yield f"| `{name}` | `{error.__base__.__name__}` | {error.exit_code} | {meaning} |\n"


if __name__ == "__main__":
    main()
