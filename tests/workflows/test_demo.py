"""The demonstration's recipes, and the figures of its report."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hagmil.trainer.config.training import HagMilConfig, parse_config
from hagmil.workflows.demo import POOLED_RECIPE, RECIPE, stage_auc

DATA = {"features": "features", "labels": "labels.csv", "split": "splits/splits_0.csv"}


@pytest.mark.parametrize(
    ("recipe", "readout", "keep_random"), [(RECIPE, "additive", True), (POOLED_RECIPE, "pooled", False)]
)
def test_both_recipes_are_valid_and_differ_in_read_out_and_selection(
    recipe: dict[str, object], readout: str, keep_random: bool
) -> None:
    config = parse_config({**recipe, "data": DATA}, source="test")
    assert isinstance(config, HagMilConfig)
    assert config.model.readout == readout
    assert config.cascade.keep_random is keep_random
    assert (config.cascade.teach > 0) is keep_random


def test_the_auc_of_each_stage_is_that_of_its_own_logits() -> None:
    logits = {"coarse": [(0.0, 1.0), (0.0, 2.0), (3.0, 0.0), (0.0, 0.5)], "fine": [(0, 1), (0, 2), (0, 3), (0, 4)]}
    results = [
        SimpleNamespace(stages=[SimpleNamespace(name=name, logits=rows[place]) for name, rows in logits.items()])
        for place in range(4)
    ]
    found = stage_auc(results, [True, True, False, False])  # type: ignore[arg-type]
    assert found == {"coarse": 1.0, "fine": 0.0}
