"""Hierarchical multiple-instance learning on whole-slide images, from training to deployment.

The names in ``__all__`` are the Python API; docs/api.md describes them. All but the errors are imported on first use,
so that ``import hagmil`` is quick. They need neither torch nor onnx, and onnxruntime only to load a model.
"""

from __future__ import annotations

from importlib import import_module

from hagmil._versions import __version__
from hagmil.errors import (
    BundleError,
    DataError,
    EnvironmentLacks,
    HagmilError,
    Interrupted,
    ParityError,
    SlideError,
    SlideFailed,
    SlideRejected,
    UsageError,
)

TYPE_CHECKING = False  # true for type checkers; the module typing would delay the handling of signals at start-up
if TYPE_CHECKING:
    from hagmil.bundle import Bundle, open_bundle
    from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures, read_features, write_features
    from hagmil.runtime.extract import ExtractOptions, Extractor, extract
    from hagmil.runtime.inference.bag import BagOutput, run_bag
    from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
    from hagmil.runtime.predict import predict_many, predict_slide
    from hagmil.runtime.results.attention import read_attention
    from hagmil.runtime.results.result import Result, StageAttention, read_result

__all__ = [
    "BagOutput",
    "Bundle",
    "BundleError",
    "DataError",
    "EnvironmentLacks",
    "ExtractOptions",
    "Extractor",
    "FeatureHeader",
    "HagmilError",
    "Interrupted",
    "LoadedModel",
    "ParityError",
    "Result",
    "SlideError",
    "SlideFailed",
    "SlideFeatures",
    "SlideRejected",
    "StageAttention",
    "StageFeatures",
    "UsageError",
    "__version__",
    "extract",
    "load_model",
    "open_bundle",
    "predict_many",
    "predict_slide",
    "read_attention",
    "read_features",
    "read_result",
    "run_bag",
    "write_features",
]

_MODULES = {
    "hagmil.bundle": ("Bundle", "open_bundle"),
    "hagmil.features": ("FeatureHeader", "SlideFeatures", "StageFeatures", "read_features", "write_features"),
    "hagmil.runtime.extract": ("ExtractOptions", "Extractor", "extract"),
    "hagmil.runtime.inference.bag": ("BagOutput", "run_bag"),
    "hagmil.runtime.inference.loaded_bundle": ("LoadedModel", "load_model"),
    "hagmil.runtime.predict": ("predict_many", "predict_slide"),
    "hagmil.runtime.results.attention": ("read_attention",),
    "hagmil.runtime.results.result": ("Result", "StageAttention", "read_result"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # type checkers would otherwise accept every name

    def __getattr__(name):
        """Import a public name on first use (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
