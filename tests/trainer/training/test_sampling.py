"""Order of slides and seeds of steps."""

from __future__ import annotations

from collections import Counter

from hagmil.trainer.training.sampling import epoch_order, step_seed, weights_seed

LABELS = [0] * 90 + [1] * 10


def test_an_epoch_has_each_slide_once_in_its_own_order() -> None:
    first = epoch_order(LABELS, seed=1, epoch=0, weighted=False)
    second = epoch_order(LABELS, seed=1, epoch=1, weighted=False)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first == epoch_order(LABELS, seed=1, epoch=0, weighted=False)


def test_weighted_sampling_balances_the_classes() -> None:
    drawn = [place for e in range(30) for place in epoch_order(LABELS, seed=1, epoch=e, weighted=True)]
    share = Counter(LABELS[place] for place in drawn)[1] / len(drawn)
    assert 0.45 < share < 0.55


def test_every_step_of_every_epoch_has_its_own_seed() -> None:
    seeds = {step_seed(seed=s, epoch=e, position=p) for s in range(3) for e in range(10) for p in range(10)}
    assert len(seeds | {weights_seed(seed=s) for s in range(3)}) == 303
