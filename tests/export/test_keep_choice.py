"""The choice of the number of patches that a bundle keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from hagmil.errors import UsageError
from hagmil.export.keep_choice import choose_keep
from hagmil.trainer.checkpoints.checkpoint import CheckpointCard, load_checkpoint
from tests.export.checkpoints import TESTED


@pytest.fixture
def card(checkpoint_dir: Path) -> CheckpointCard:
    """A card that keeps 20 patches, as its test says."""
    return load_checkpoint(checkpoint_dir).card


def kept(card: CheckpointCard) -> list[int | None]:
    return [stage.keep for stage in card.stages]


@pytest.mark.parametrize(
    ("tested", "keep", "expected", "reason"),
    [
        (TESTED.model_copy(update={"held_from": 4}), None, 4, "4 patches are kept: the smallest tested number"),
        (TESTED.model_copy(update={"held_from": None}), None, 20, "with none of the tested numbers, all verdicts of 9"),
        (None, None, 20, "which was not tested with other numbers"),
        (TESTED.model_copy(update={"held_from": 4}), 16, 16, "16 patches are kept, as requested"),
    ],
)
def test_the_request_comes_before_the_test_and_the_test_before_the_checkpoint(
    card: CheckpointCard, tested: object, keep: int | None, expected: int, reason: str
) -> None:
    choice = choose_keep(card.model_copy(update={"tested": tested}), keep)
    assert kept(choice.card) == [expected, None]
    assert reason in choice.reason


def test_a_single_stage_has_nothing_to_choose(card: CheckpointCard) -> None:
    single = card.model_copy(update={"stages": card.stages[-1:]})
    assert choose_keep(single) == (single, "")
    with pytest.raises(UsageError, match="single stage, which reads all patches; leave out --keep"):
        choose_keep(single, 4)
