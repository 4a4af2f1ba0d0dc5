"""The cascade on the features of one slide, with several numbers of kept patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.bundle.adaptive import KEEPS
from hagmil.trainer.cascade.readings import KeepReading, SlideReadings, limited_ladder, read_slide
from hagmil.trainer.cascade.slide_cascade import SlideCascade, StageOutputs
from hagmil.trainer.data.cohort import open_training_cohort
from tests.trainer.cohorts import THREE_STAGES, configured, write_cohort, write_slide

PATCHES = 12


class Models:
    """Stage models that attend to the first feature, with the mean of the bag as logits; counts their runs."""

    def __init__(self) -> None:
        self.bags: list[tuple[int, int]] = []

    def __call__(self, index: int, features: NDArray[np.float32]) -> StageOutputs:
        self.bags.append((index, len(features)))
        return {"logits": features.mean(axis=0)[:2], "attention": features[:, 0]}


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def cascade(tmp_path: Path, models: Models) -> SlideCascade:
    tree = write_cohort(tmp_path, stages=THREE_STAGES)
    write_slide(tmp_path / "features", "train-0", 0, patches=PATCHES, stages=THREE_STAGES)
    cohort = open_training_cohort(configured(tree))
    return SlideCascade(cohort.train[0], cohort.stages, models)


def test_each_number_reads_the_children_of_the_kept_patches(cascade: SlideCascade, models: Models) -> None:
    found = read_slide(cascade, [2, 5])
    reads = {keep: reading.patches_read for keep, reading in found.by_keep.items()}
    assert reads == {2: 12 + 8 + 8, 5: 12 + 20 + 20, None: 12 + 48 + 192}
    assert (found.label, found.coarse_patches, found.most_kept) == (0, 12, 48)
    assert models.bags.count((0, 12)) == 1
    assert len(models.bags) == 1 + 3 * 2


def test_numbers_that_read_every_patch_share_one_run(cascade: SlideCascade, models: Models) -> None:
    found = read_slide(cascade, [47, 48, 64])
    assert found.by_keep[64] is found.by_keep[48] is found.by_keep[None]
    assert found.by_keep[47] is not found.by_keep[None]
    assert found.by_keep[47].patches_read == 12 + 48 + 188
    assert len(models.bags) == 1 + 2 * 2


def test_the_second_bag_has_the_rows_with_the_highest_attention(cascade: SlideCascade) -> None:
    found = read_slide(cascade, [16], with_top=True)
    whole = cascade.run([None, None]).bags[-1]
    rows = np.sort(np.argsort(-whole[:, 0], kind="stable")[:32])
    np.testing.assert_allclose(found.by_keep[None].top_logits, whole[rows].mean(axis=0)[:2], rtol=1e-6)
    (reading,) = found.ladder([16])
    assert reading.keep == 16
    assert reading.logits[0] < reading.top_logits[0]


def test_a_bag_of_few_rows_is_its_own_second_bag(cascade: SlideCascade) -> None:
    found = read_slide(cascade, [4], with_top=True).by_keep[4]
    assert found.top_logits is found.logits


@pytest.mark.parametrize(
    ("most_kept", "expected"), [(1, (4, 8)), (8, (4, 8, 16)), (9, (4, 8, 16, 32)), (99, (4, 8, 16, 32, 64, 128))]
)
def test_the_ladder_ends_at_the_second_number_that_reads_everything(most_kept: int, expected: tuple[int, ...]) -> None:
    reading = KeepReading(np.zeros(2, np.float32), np.zeros(2, np.float32), 1)
    small = SlideReadings("small", 0, 1, 1, dict.fromkeys((*KEEPS, None), reading))
    large = replace(small, most_kept=most_kept)
    assert limited_ladder([large, small]) == expected
    assert tuple(one.keep for one in large.ladder(KEEPS)) == expected
