"""The benchmark on pyramids of digits: images, fields, and the order of patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.digit_pyramid import (
    KEY,
    TESTS,
    configuration,
    image_pools,
    make_fields,
    measure,
    slide_features,
)
from benchmarks.stability import RECIPES, TODAY


def test_the_images_of_training_validation_and_test_are_disjoint() -> None:
    train, val, test = image_pools(np.random.default_rng(0))
    assert sum(len(images) for pool in (train, val, test) for images in pool.values()) == 1797
    assert 0.55 < sum(map(len, train.values())) / 1797 < 0.65


def test_only_positive_slides_contain_the_key_digit() -> None:
    pool = {digit: np.full((1, 8, 8), digit / 10, np.float32) for digit in range(10)}
    shares = [
        np.isclose(make_fields(pool, 100, positive, np.random.default_rng(1)), KEY / 10).mean()
        for positive in (False, True)
    ]
    assert shares[0] == 0.0
    assert 0.01 < shares[1] < 0.25


def test_the_patch_of_a_stage_is_the_mean_of_its_children() -> None:
    fields = np.random.default_rng(2).random((3, 32, 32), dtype=np.float32)
    coarse, middle, fine = (stage.features for stage in slide_features("s", fields).stages)
    assert [len(coarse), len(middle), len(fine)] == [3, 12, 48]
    np.testing.assert_array_equal(fine[0].reshape(8, 8), fields[0, :8, :8])
    for parents, table in ((coarse, middle), (middle, fine)):
        expected = table.reshape(len(parents), 4, -1).mean(axis=(1, 2))
        np.testing.assert_allclose(parents.mean(axis=1), expected, rtol=1e-5)
    np.testing.assert_array_equal(fine[1].reshape(8, 8), fields[0, 8:16, :8])  # children are in column order


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_gives_a_configuration(recipe: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, recipe, seed=3, epochs=2)
    assert config.model.readout == ("pooled" if recipe.startswith("pooled") else "additive")
    assert config.cascade.teach == (0.3 if recipe.endswith("teach") else 0.0)
    assert config.cascade.keep_random == ("keep8" not in recipe)
    assert config.loss.instance == ("cross_entropy" if recipe == TODAY else "none")


def test_a_run_in_the_folder_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.digit_pyramid.FIELDS", (4, 6))
    monkeypatch.setattr("benchmarks.digit_pyramid.LARGE", 2)
    monkeypatch.setattr("benchmarks.digit_pyramid.SLIDES", {"train": 2, "val": 2, "test": 2, "large": 2})
    report = measure("additive-random", [0], [2, 4], 1, tmp_path, others=True)
    monkeypatch.delattr("benchmarks.stability.train")
    assert measure("additive-random", [0], [2, 4], 1, tmp_path)["runs"][0]["same"] == report["runs"][0]["same"]
    (run,) = report["runs"]
    assert [row["keep"] for row in run["same"]["keeps"]] == [2, 4, None]
    coarse, finest = (run["others"][name] for name in ("coarse stage alone", "everything at the finest stage"))
    for test in TESTS:
        assert finest[test]["patches_read"] == 16 * coarse[test]["patches_read"]
        assert run[test]["keeps"][-1]["patches_read"] == 21 * coarse[test]["patches_read"]
