"""The cascade on extracted features, and the agreement of its predictions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.features_cascade import (
    EVERYTHING,
    Verdicts,
    agreement,
    auc,
    cascade_verdicts,
    flat_verdicts,
    share_read,
    smallest_agreeing,
)
from hagmil.features import FeatureHeader, SlideFeatures, StageFeatures
from hagmil.runtime.inference.loaded_bundle import LoadedModel, builtin_bundle, load_model
from hagmil.tissue_parameters import TissueParameters

LABELS = np.array([0, 0, 1, 1], np.int64)


def verdicts(keep: int, tumour: list[float], finest: int = 1) -> Verdicts:
    """Make predictions with these probabilities of tumour, from 4 coarse and some finest patches per slide."""
    second = np.array(tumour)
    read: NDArray[np.int64] = np.array([[4, finest]] * len(tumour), np.int64)
    return Verdicts(keep, np.stack([1 - second, second], axis=1), read)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(builtin_bundle(), threads=1)


def features_of(coarse: int, seed: int = 0) -> SlideFeatures:
    """Make random features of a full quadtree for the demonstration bundle."""
    rng = np.random.default_rng(seed)
    stages = []
    for index, name in enumerate(("2um", "1um", "0.5um")):
        rows, side = coarse * 4**index, 256 >> index
        coords = np.stack([np.arange(rows) * side, np.zeros(rows)], axis=1).astype(np.int64)
        features = rng.normal(size=(rows, 128)).astype(np.float32)
        stages.append(StageFeatures(name, coords, features, 64, side, 2.0 / 2**index))
    names = ("2um", "1um", "0.5um")
    header = FeatureHeader("s", "s.tif", "", 0.5, "metadata", "tiny", "0" * 64, TissueParameters(), names)
    return SlideFeatures(header, tuple(stages))


def test_agreement_is_the_share_of_slides_with_the_same_prediction() -> None:
    everything = verdicts(EVERYTHING, [0.1, 0.2, 0.8, 0.9])
    assert agreement(everything, everything) == 1.0
    assert agreement(verdicts(1, [0.4, 0.6, 0.6, 0.4]), everything) == 0.5


def test_the_smallest_agreeing_keep_requires_agreement_of_all_larger_ones() -> None:
    everything = verdicts(EVERYTHING, [0.1, 0.9])
    lucky, wrong = verdicts(1, [0.2, 0.8]), verdicts(2, [0.2, 0.2])
    right, best = verdicts(4, [0.3, 0.6]), verdicts(8, [0.1, 0.9])
    assert smallest_agreeing([lucky, wrong, right, best], everything) == 4
    assert smallest_agreeing([best, right, wrong, lucky], everything) == 4
    assert smallest_agreeing([lucky, right], everything) == 1
    assert smallest_agreeing([lucky, wrong], everything) is None


def test_the_share_read_is_given_for_the_finest_stage_and_for_all() -> None:
    assert share_read(verdicts(1, [0.5], finest=4), verdicts(2, [0.5], finest=16)) == (0.25, 8 / 20)


def test_the_auc_is_undefined_without_both_classes() -> None:
    assert auc(verdicts(1, [0.1, 0.6, 0.4, 0.9]), LABELS) == 0.75
    assert auc(verdicts(1, [0.1, 0.2]), LABELS[:2]) is None


def test_the_cascade_on_features_reads_the_children_of_kept_patches(demo: LoadedModel) -> None:
    found = cascade_verdicts(demo, [features_of(3), features_of(1)], keep=2)
    assert found.read.tolist() == [[3, 8, 8], [1, 4, 8]]
    assert found.probabilities.sum(axis=1) == pytest.approx(1.0)
    everything = cascade_verdicts(demo, [features_of(3)], EVERYTHING)
    assert everything.read.tolist() == [[3, 12, 48]]
    assert flat_verdicts(demo, [features_of(3)]).read.tolist() == [[0, 0, 48]]


def test_a_keep_above_all_bag_sizes_gives_the_predictions_of_keeping_everything(demo: LoadedModel) -> None:
    slide = [features_of(2)]
    np.testing.assert_array_equal(
        cascade_verdicts(demo, slide, 8).probabilities, cascade_verdicts(demo, slide, EVERYTHING).probabilities
    )
    assert not np.array_equal(
        cascade_verdicts(demo, slide, 1).probabilities, cascade_verdicts(demo, slide, EVERYTHING).probabilities
    )
