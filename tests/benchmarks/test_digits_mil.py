"""The digits benchmark: bags, choice of the learning rate, and a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from benchmarks.digits_bags import BACKGROUND, BAG_SIZES, FINE, FINE_TO_COARSE, make_cohort
from benchmarks.digits_mil import PAGE, TrainingRun, choose, main, replace_table, table, train
from benchmarks.digits_models import digits_models


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_bag_contains_one_or_two_keys_of_its_class_and_background() -> None:
    targets = load_digits().target
    for part in make_cohort(0, bags_per_class=(3, 3, 3)).train:
        digits = targets[part.images]
        for bag, label, keys in zip(digits, part.labels, part.keys, strict=True):
            assert 1 <= keys.sum() <= 2
            assert set(bag[keys]) == {int(FINE[label])}
            assert set(bag[~keys]) <= set(BACKGROUND)
        assert part.features.shape == (len(part.labels), digits.shape[1], 64)
        assert part.features.min() >= 0
        assert part.features.max() <= 1


def test_no_image_is_in_two_parts_or_twice_in_a_bag() -> None:
    cohort = make_cohort(1)
    seen = [
        set(np.concatenate([bags.images.ravel() for bags in part]).tolist())
        for part in (cohort.train, cohort.val, cohort.test)
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for bags in cohort.test:
        assert all(len(set(row)) == len(row) for row in bags.images.tolist())


def test_classes_and_sizes_are_balanced_and_depend_on_the_seed() -> None:
    cohort = make_cohort(2, bags_per_class=(6, 3, 3))
    assert [bags.features.shape[1] for bags in cohort.train] == list(BAG_SIZES)
    for bags in cohort.train:
        assert np.bincount(bags.labels, minlength=len(FINE)).tolist() == [2] * len(FINE)
    assert not np.array_equal(cohort.train[0].images, make_cohort(3, bags_per_class=(6, 3, 3)).train[0].images)


def test_every_model_trains_and_gives_the_same_result_with_the_same_seed() -> None:
    cohort = make_cohort(0, bags_per_class=(6, 3, 3))
    for model_type in digits_models():
        one, other = (train(model_type, cohort, learning_rate=3e-3, seed=4, epochs=3) for _ in range(2))
        assert (one.fine_accuracy, one.auc, one.val_loss) == (other.fine_accuracy, other.auc, other.val_loss)
        assert 1 <= one.best_epoch <= 3
        assert 0 <= one.consistency <= 1
        assert one.parameters > 1000


def test_the_learning_rate_with_the_best_mean_validation_accuracy_is_chosen() -> None:
    def run(rate: float, seed: int, accuracy: float, loss: float) -> TrainingRun:
        return TrainingRun("a", rate, seed, 1, accuracy, loss, 0.5, 0.5, 0.5, 0.5, 1.0, 10)

    runs = [run(1e-3, 0, 0.9, 0.5), run(1e-3, 1, 0.5, 0.5), run(1e-2, 0, 0.8, 0.5), run(1e-2, 1, 0.7, 0.5)]
    assert [each.learning_rate for each in choose(runs)[0]] == [1e-2, 1e-2]
    tied = [run(1e-3, 0, 0.9, 0.5), run(1e-2, 0, 0.9, 0.4)]
    assert choose(tied)[0][0].learning_rate == 1e-2


def test_a_tiny_run_writes_results_and_replaces_the_table_of_a_page(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    small = ["--seeds", "0", "--epochs", "1", "--rates", "0.003", "--bags", "3", "3", "3"]
    main([*small, "--results", str(results), "--page", str(page)])
    found = json.loads(results.read_text())
    assert [run["model"] for run in found["runs"]] == [model_type.name for model_type in digits_models()]
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| HMIL") == 4


def test_the_published_page_shows_the_published_results() -> None:
    results = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "digits_mil.json").read_text())
    runs = [TrainingRun(**run) for run in results["runs"]]
    page = PAGE.read_text(encoding="utf-8")
    assert replace_table(page, table(choose(runs))) == page
    assert len(runs) == 7 * 5 * 3
    assert len(FINE_TO_COARSE) == len(FINE)
