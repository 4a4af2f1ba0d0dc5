"""``hagmil infer`` as its users start it, in a process that records when each step begins.

    python -m hagmil.runtime.bench.watched_infer NOTES infer ARGUMENTS...

1. Record the time at which the interpreter runs, then do what ``python -m hagmil infer ARGUMENTS`` does.
2. Record the times before and after loading the models, and the memory after it.
3. Record when the backbone gets its first patches.
4. Write the notes at the end, with the peak resident memory.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from hagmil._models import FrozenModel

if TYPE_CHECKING:
    from hagmil.runtime.inference.loaded_bundle import LoadedModel


class Notes(FrozenModel):
    """Times and memory of the process; times are those of the monotonic clock, which all processes share."""

    interpreter: float
    loading: float
    loaded: float
    first_patch: float
    with_models_mb: float
    peak_rss_mb: float


class _Watched:
    """A session that records the first access to one of its methods, which is when it gets its first patches."""

    def __init__(self, session: Any, note: Callable[[str], None]) -> None:
        self._session = session
        self._note = note

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._session, name)
        if callable(value):
            self._note("first_patch")
        return value


def main() -> None:
    """Run the command given by the arguments and write the notes."""
    seen = {"interpreter": monotonic()}  # step 1
    from hagmil.runtime.bench.machine import peak_rss_mb, rss_mb
    from hagmil.runtime.inference import loaded_bundle

    def _note(name: str) -> None:
        seen.setdefault(name, monotonic())

    original_load = loaded_bundle.load_model

    def _load(*arguments: Any, **named: Any) -> LoadedModel:
        _note("loading")  # step 2
        loaded = original_load(*arguments, **named)
        _note("loaded")
        seen["with_models_mb"] = rss_mb()
        return replace(loaded, backbone=_Watched(loaded.backbone, _note))  # step 3

    loaded_bundle.load_model = _load
    notes_path = Path(sys.argv[1])
    sys.argv = ["hagmil", *sys.argv[2:]]
    try:
        runpy.run_module("hagmil", run_name="__main__")
    finally:
        if "first_patch" in seen:  # step 4
            notes_path.write_text(Notes(peak_rss_mb=peak_rss_mb(), **seen).model_dump_json())


if __name__ == "__main__":
    main()
