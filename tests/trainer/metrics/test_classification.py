"""Metrics of slide predictions during training."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from hagmil.trainer.metrics.classification import classification_metrics, hierarchy_metrics


def test_metrics_of_two_classes_equal_values_computed_by_hand() -> None:
    tumour = np.array([0.1, 0.6, 0.4, 0.9])
    metrics = classification_metrics(
        np.stack([1 - tumour, tumour], axis=1), np.array([0, 0, 1, 1]), loss=0.5, empty_slides=2
    )
    assert metrics.auc == 0.75
    assert metrics.accuracy == 0.5
    assert metrics.macro_f1 == 0.5
    assert (metrics.slides, metrics.empty_slides, metrics.loss) == (4, 2, 0.5)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_metrics_equal_those_of_scikit_learn(classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels = np.arange(61) % classes
    logits = generator.normal(size=(61, classes)).round(1)  # with ties
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = classification_metrics(probabilities, labels, loss=None, empty_slides=0)
    predictions = probabilities.argmax(axis=1)
    scores = probabilities[:, 1] if classes == 2 else probabilities
    assert metrics.auc == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"), abs=1e-12)
    assert metrics.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-12)
    assert metrics.accuracy == pytest.approx((predictions == labels).mean(), abs=1e-12)


def test_the_auc_of_several_classes_is_the_mean_of_each_against_the_rest() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.7, 0.1, 0.2]])
    metrics = classification_metrics(probabilities, np.array([0, 1, 1, 2]), loss=None, empty_slides=0)
    # 0 against rest: 2 of 3 pairs in order; 1: 3 of 4; 2: 2 of 3.
    assert metrics.auc == pytest.approx((2 / 3 + 3 / 4 + 2 / 3) / 3)


def test_a_class_without_slides_leaves_auc_and_macro_f1_undefined() -> None:
    metrics = classification_metrics(np.full((2, 3), 1 / 3), np.array([0, 1]), loss=1.0, empty_slides=0)
    assert metrics.auc is None
    assert metrics.accuracy == 0.5
    assert metrics.macro_f1 is None


def test_without_slides_all_metrics_are_undefined() -> None:
    metrics = classification_metrics(np.zeros((0, 2)), np.zeros(0, np.int64), loss=None, empty_slides=1)
    assert metrics.model_dump() == {
        "slides": 0,
        "empty_slides": 1,
        "loss": None,
        "auc": None,
        "accuracy": None,
        "macro_f1": None,
        "hierarchy": None,
    }


def test_coarse_predictions_are_compared_with_labels_and_fine_predictions() -> None:
    fine = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.4, 0.1, 0.5]])
    coarse = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    layers = hierarchy_metrics(fine, coarse, np.array([0, 2, 1, 2]), np.array([0, 0, 1]))
    assert layers.coarse_accuracy == 0.5  # right, right, wrong, wrong
    assert layers.coarse_auc == 0.75
    assert layers.agreement == 0.5  # the last two: fine benign, coarse malignant, and the other way round


def test_without_slides_the_agreement_is_undefined() -> None:
    layers = hierarchy_metrics(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0, np.int64), np.array([0, 0, 1]))
    assert set(layers.model_dump().values()) == {None}
