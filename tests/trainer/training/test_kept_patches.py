"""The test with several numbers of kept patches, shared by several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.data.cohort import open_training_cohort
from hagmil.trainer.methods.registry import new_method
from hagmil.trainer.training.kept_patches import KeptPatchesTest, is_planned, measure_kept_patches
from tests.trainer.cohorts import configured, write_cohort


def test_two_processes_share_the_slides_and_return_the_result_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(write_cohort(tmp_path, parts={"train": 2, "val": 5, "test": 0}))
    cohort = open_training_cohort(config)
    method = new_method(config, cohort)
    alone = measure_kept_patches(method, cohort, keep=2, group=SINGLE_PROCESS, after_slide=lambda _: None)
    parts: list[Any] = []
    done: list[int] = []
    results: list[KeptPatchesTest] = []
    # Run both processes in turn twice: first record the objects that they gather, then return those of both.
    for gathers in (lambda _self, own: parts.append(own) or [own], lambda _self, _own: list(parts)):
        monkeypatch.setattr(ProcessGroup, "all_gather", gathers)
        for rank in range(2):
            try:
                results.append(
                    measure_kept_patches(method, cohort, keep=2, group=ProcessGroup(rank, 2), after_slide=done.append)
                )
            except KeyError:  # in the first round the results of the other process are missing
                continue
    assert [len(part) for part in parts] == [3, 2]
    assert results == [alone, alone]
    assert max(done) == 5
    assert [row.keep for row in alone.tested.keeps] == [2, 4, None]


@pytest.mark.parametrize(("validation_keeps", "planned"), [([4, "all"], True), (None, False)])
def test_only_trainings_that_choose_weights_with_several_numbers_end_with_it(
    tmp_path: Path, validation_keeps: object, planned: bool
) -> None:
    tree = write_cohort(tmp_path)
    config = configured(tree, cascade={**tree["cascade"], "validation_keeps": validation_keeps})
    assert is_planned(config, open_training_cohort(config)) is planned


def test_a_single_stage_has_nothing_to_test(tmp_path: Path) -> None:
    tree = write_cohort(tmp_path, stages=(("only", 0.5),))
    config = configured(tree, cascade={**tree["cascade"], "validation_keeps": [4, "all"]})
    assert not is_planned(config, open_training_cohort(config))
