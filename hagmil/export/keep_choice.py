"""The number of patches that a bundle keeps: as requested, from the test on validation slides, or the checkpoint's."""

from __future__ import annotations

from typing import NamedTuple

from hagmil.errors import UsageError
from hagmil.trainer.checkpoints.checkpoint import CheckpointCard


class KeepChoice(NamedTuple):
    """The result of :func:`choose_keep`.

    Args:
        card: the card with the chosen number at every stage but the last.
        reason: one sentence; empty for a model with a single stage.
    """

    card: CheckpointCard
    reason: str


def choose_keep(card: CheckpointCard, keep: int | None = None) -> KeepChoice:
    """Choose the number of patches that a bundle keeps.

    1. The number that was requested.
    2. Otherwise the smallest number from which on the verdict of every validation slide is that of all patches, if the
       checkpoint contains such a test.
    3. Otherwise the number of the checkpoint.

    Args:
        card: the card of the checkpoint.
        keep: the requested number; None for steps 2 and 3.

    Raises:
        UsageError: a number is requested for a model with a single stage.
    """
    if len(card.stages) == 1:
        if keep is not None:
            raise UsageError("the checkpoint has a single stage, which reads all patches; leave out --keep")
        return KeepChoice(card, "")
    if keep is not None:
        return KeepChoice(_with_keep(card, keep), f"{keep} patches are kept, as requested at the export.")
    if card.tested is None:
        return KeepChoice(
            card,
            "The numbers of kept patches are those of the checkpoint, which was not tested with other numbers "
            "(cascade.validation_keeps).",
        )
    slides = f"{card.tested.slides} validation slides"
    held_from = card.tested.held_from
    if held_from is None:
        return KeepChoice(
            card,
            "The numbers of kept patches are those of the checkpoint: with none of the tested numbers, all verdicts of "
            f"{slides} are those of all patches.",
        )
    return KeepChoice(
        _with_keep(card, held_from),
        f"{held_from} patches are kept: the smallest tested number from which on all verdicts of {slides} are those of "
        "all patches.",
    )


def _with_keep(card: CheckpointCard, keep: int) -> CheckpointCard:
    stages = tuple(stage.model_copy(update={"keep": stage.keep and keep}) for stage in card.stages)
    return card.model_copy(update={"stages": stages})
