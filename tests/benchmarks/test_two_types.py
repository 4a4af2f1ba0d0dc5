"""The benchmark on two types of patches that must occur together."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.two_types import DIMENSIONS, make_bag, markdown, measure


@pytest.mark.parametrize(("types", "present"), [("", [False, False]), ("B", [False, True]), ("AB", [True, True])])
def test_a_slide_has_the_patches_of_its_types(types: str, present: list[bool]) -> None:
    generator = np.random.default_rng(0)
    found = np.mean([[(make_bag(types, generator)[:, axis] > 3.5).any() for axis in (0, 1)] for _ in range(40)], axis=0)
    assert ((found > 0.5) == present).all()
    assert make_bag(types, generator).shape[1] == DIMENSIONS


def test_each_model_gets_a_row() -> None:
    run = measure("additive", 0, {"train": 6, "val": 6, "test": 6}, epochs=1)
    assert "| additive |" in markdown({"runs": [run]})
