"""A script that uses every public name of hagmil. A test checks its types with mypy --strict and runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import hagmil

_ERRORS: tuple[type[hagmil.HagmilError], ...] = (
    hagmil.UsageError,
    hagmil.DataError,
    hagmil.SlideError,
    hagmil.SlideRejected,
    hagmil.SlideFailed,
    hagmil.BundleError,
    hagmil.ParityError,
    hagmil.EnvironmentLacks,
    hagmil.Interrupted,
)


def predict(slide: str, out: Path) -> hagmil.Result:
    """Predict one slide, read its files back, and compare both."""
    model: hagmil.LoadedModel = hagmil.load_model()
    result: hagmil.Result = hagmil.predict_slide(slide, model=model, out=out / "slide")
    stages: tuple[hagmil.StageAttention, ...] = hagmil.read_attention(str(out / "slide"))
    attention: NDArray[np.float32] = stages[0].attention
    np.testing.assert_array_equal(attention, result.attention[0].attention)
    assert hagmil.read_result(str(out / "slide")) == result
    (again,) = hagmil.predict_many([slide], model=model)
    assert again.probabilities == result.probabilities
    bundle: hagmil.Bundle = hagmil.open_bundle(str(model.bundle.path))
    assert bundle.sha256 == result.bundle_sha256
    return result


def encode(slide: str, out: Path) -> hagmil.SlideFeatures:
    """Extract the features of one slide, read them back, and run a stage model on them."""
    model = hagmil.load_model()
    features: hagmil.SlideFeatures = hagmil.extract(slide, backbone=model, out=str(out))
    header: hagmil.FeatureHeader = features.header
    stage: hagmil.StageFeatures = hagmil.read_features(str(out / f"{header.slide_id}.h5")).stages[0]
    np.testing.assert_array_equal(stage.features, features.stages[0].features)
    bag: hagmil.BagOutput = hagmil.run_bag(model, stage.features, stage.name)
    assert bag.attention.shape == (len(stage.coords),)
    hagmil.write_features(str(out / "copy.h5"), features)
    return features


def encode_many(slides: list[str], backbone: str) -> list[hagmil.SlideFeatures]:
    """Extract the features of several slides with one backbone."""
    options = hagmil.ExtractOptions(stages=(("2um", 2.0), ("1um", 1.0)), half=True)
    extractor: hagmil.Extractor = hagmil.Extractor.open(backbone, options)
    return [hagmil.extract(slide, backbone=extractor) for slide in slides]


def error_code(slide: str) -> str | None:
    """Return the code of the error for a slide that cannot be read."""
    try:
        hagmil.extract(slide, backbone=hagmil.load_model())
    except _ERRORS as error:
        return error.code
    return None


def version() -> str:
    return hagmil.__version__
