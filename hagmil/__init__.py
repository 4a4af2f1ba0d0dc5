"""Hierarchical multiple-instance learning on whole-slide images, from training to deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hagmil._version import __version__

if TYPE_CHECKING:
    from hagmil.runtime.predict import predict_slide
    from hagmil.runtime.results.result import Result

__all__ = ["Result", "__version__", "predict_slide"]


def __getattr__(name: str) -> Any:
    """Load the runtime when it is first asked for, so that ``import hagmil`` and ``hagmil --help`` are quick."""
    if name == "predict_slide":
        from hagmil.runtime.predict import predict_slide

        return predict_slide
    if name == "Result":
        from hagmil.runtime.results.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
