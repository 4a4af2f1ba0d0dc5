"""Synthetic inputs for parity checks and self-tests."""

from __future__ import annotations

import numpy as np
import pytest

from hagmil.export.parity.synthetic_inputs import (
    BAG_KINDS,
    PATCH_KINDS,
    BagKind,
    PatchKind,
    synthetic_bag,
    synthetic_patches,
)


@pytest.mark.parametrize("kind", PATCH_KINDS)
def test_patches_are_the_same_for_the_same_seed_at_any_size(kind: PatchKind) -> None:
    one = synthetic_patches(kind, 2, 17, 33, seed=4)

    assert one.shape == (2, 17, 33, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, synthetic_patches(kind, 2, 17, 33, seed=4))


def test_tissue_is_pink_to_purple_and_smooth() -> None:
    red, green, blue = synthetic_patches("tissue", 4, 64, 64).reshape(-1, 3).mean(axis=0)

    assert red > green
    assert blue > green


@pytest.mark.parametrize("kind", BAG_KINDS)
def test_bags_are_the_same_for_the_same_seed_and_differ_between_seeds(kind: BagKind) -> None:
    bag = synthetic_bag(kind, 40, 16, seed=1)

    assert bag.shape == (40, 16)
    assert bag.dtype == np.float32
    np.testing.assert_array_equal(bag, synthetic_bag(kind, 40, 16, seed=1))
    assert np.array_equal(bag, synthetic_bag(kind, 40, 16, seed=2)) == (kind == "zeros")


def test_clustered_bags_look_like_features_after_a_relu() -> None:
    bag = synthetic_bag("clustered", 200, 64)

    assert bag.min() >= 0
    assert 0.05 < bag.mean() < 1


def test_phantom_patches_are_of_tissue_and_differ() -> None:
    patches = synthetic_patches("phantom", 3, 64, 64)

    assert patches[..., 1].mean() < 200  # glass is above 240
    assert len(np.unique(patches.reshape(3, -1), axis=0)) == 3


def test_extreme_bags_are_extreme() -> None:
    assert synthetic_bag("large", 10, 8).max() > 5 * synthetic_bag("clustered", 10, 8).max()
    assert not synthetic_bag("zeros", 10, 8).any()
    assert np.ptp(synthetic_bag("constant", 10, 8), axis=0).max() == 0
