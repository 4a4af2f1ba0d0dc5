"""Metrics of a classification, over many resamples of the slides at once.

A resample is a row of weights: the number of times that each slide occurs in it. Weights of 1 give the metrics of the
slides themselves, so the same code computes point estimates and bootstrap replicates. A metric is NaN where a resample
leaves it undefined, as the sensitivity for a class that does not occur.

1. Confusion matrix: the weights summed by label and prediction; the prediction is the class of highest probability.
2. Accuracy, and sensitivity (recall), specificity and F1 of each class against the rest, follow from it. Balanced
   accuracy and macro F1 are means over all classes. The sensitivity and the F1 of a class that does not occur are
   undefined, and so are their means.
3. Area under the ROC curve of each class against the rest, from ranks; ties count half. The macro average is the mean
   over classes. With two classes, the areas of both are equal, and the second one is used.
4. Expected calibration error (Guo et al. 2017, section 2): slides are put in bins of equal width by the probability of
   their prediction; the error is the mean over slides of the difference between accuracy and mean probability in the
   slide's bin.
5. Log loss: the mean of -log of the label's probability, which is clipped to eps..1 - eps as in scikit-learn.
6. Brier score: the mean over slides of the squared differences between probabilities and 0 or 1, summed over classes;
   with two classes, half of it, as in scikit-learn.
7. Average precision of each class against the rest: the sum over thresholds of the precision times the increase of the
   sensitivity, as in scikit-learn. The macro average is the mean over classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15
_EPS = float(np.finfo(np.float64).eps)


class Measures(NamedTuple):
    """The metrics, with one row for each resample; NaN where undefined.

    Args:
        auc: (resamples,), one against rest, macro average.
        accuracy: (resamples,).
        balanced_accuracy: (resamples,).
        macro_f1: (resamples,).
        calibration_error: (resamples,).
        log_loss: (resamples,).
        brier_score: (resamples,).
        average_precision: (resamples,), one against rest, macro average.
        class_auc: (resamples, classes).
        class_average_precision: (resamples, classes).
        sensitivity: (resamples, classes).
        specificity: (resamples, classes).
        f1: (resamples, classes).
        confusion: (resamples, classes, classes), weights by label (row) and prediction (column).
        confusion_share: (resamples, classes, classes), the same as shares of each label's weight.
    """

    auc: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    balanced_accuracy: NDArray[np.float64]
    macro_f1: NDArray[np.float64]
    calibration_error: NDArray[np.float64]
    log_loss: NDArray[np.float64]
    brier_score: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    class_auc: NDArray[np.float64]
    class_average_precision: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]
    f1: NDArray[np.float64]
    confusion: NDArray[np.float64]
    confusion_share: NDArray[np.float64]


def measure(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> Measures:
    """Compute the metrics of predictions.

    Args:
        probabilities: float64 (slides, classes), rows sum to 1; at least one slide and two classes.
        labels: int64 (slides,).
        weights: float64 (resamples, slides), the number of times that each slide occurs in each resample; None for a
            single resample with weights of 1.

    Returns:
        The metrics of each resample.
    """
    slides, classes = probabilities.shape
    if weights is None:
        weights = np.ones((1, slides))
    total = weights.sum(axis=1)
    confusion = _confusion(probabilities.argmax(axis=1), labels, weights, classes)  # step 1
    hits = np.einsum("rcc->rc", confusion)  # step 2
    of_label, of_prediction = confusion.sum(axis=2), confusion.sum(axis=1)
    sensitivity = _share(hits, of_label)
    rest = total[:, np.newaxis] - of_label
    f1 = np.where(of_label > 0, _share(2 * hits, of_label + of_prediction), np.nan)
    ranked = [_auc_and_precision(probabilities[:, index], labels == index, weights) for index in range(classes)]
    class_auc, class_precision = (np.stack(columns, axis=1) for columns in zip(*ranked, strict=True))  # steps 3 and 7
    negative_log = -np.log(np.clip(probabilities[np.arange(slides), labels], _EPS, 1 - _EPS))
    squares = np.square(probabilities - np.eye(classes)[labels]).sum(axis=1) / (2 if classes == 2 else 1)
    return Measures(
        auc=class_auc[:, 1] if classes == 2 else class_auc.mean(axis=1),
        accuracy=hits.sum(axis=1) / total,
        balanced_accuracy=sensitivity.mean(axis=1),
        macro_f1=f1.mean(axis=1),
        calibration_error=_calibration_error(probabilities, labels, weights),  # step 4
        log_loss=weights @ negative_log / total,  # step 5
        brier_score=weights @ squares / total,  # step 6
        average_precision=class_precision.mean(axis=1),
        class_auc=class_auc,
        class_average_precision=class_precision,
        sensitivity=sensitivity,
        specificity=_share(rest - of_prediction + hits, rest),
        f1=f1,
        confusion=confusion,
        confusion_share=_share(confusion, of_label[:, :, np.newaxis]),
    )


def confidence_bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the calibration bin of each probability; bin b is above b/bins and up to (b + 1)/bins.

    Args:
        confidence: float64 (slides,), probabilities of the predictions, above 0.

    Returns:
        int64 (slides,), from 0.
    """
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    return np.clip(bins, 0, CALIBRATION_BINS - 1)


def _confusion(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], weights: NDArray[np.float64], classes: int
) -> NDArray[np.float64]:
    cells = np.zeros((len(labels), classes * classes))
    cells[np.arange(len(labels)), labels * classes + predictions] = 1.0
    return (weights @ cells).reshape(-1, classes, classes)  # (resamples, classes²) -> (resamples, classes, classes)


def _auc_and_precision(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute steps 3 and 7 for one class; its area is the share of (positive, negative) pairs in the right order."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of runs of equal scores
    ordered, is_positive = weights[:, order], positive[order]
    positives = np.add.reduceat(ordered * is_positive, starts, axis=1)
    negatives = np.add.reduceat(ordered * ~is_positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    ordered_pairs = (positives * (below + negatives / 2)).sum(axis=1)
    all_positives, all_negatives = positives.sum(axis=1), negatives.sum(axis=1)
    found = np.cumsum(positives[:, ::-1], axis=1)[:, ::-1]  # positive slides with at least this score
    false = np.cumsum(negatives[:, ::-1], axis=1)[:, ::-1]
    precise = np.nansum(positives * _share(found, found + false), axis=1)
    return _share(ordered_pairs, all_positives * all_negatives), _share(precise, all_positives)


def _calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    confidence = probabilities.max(axis=1)
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    correct = probabilities.argmax(axis=1) == labels
    gaps[np.arange(len(labels)), confidence_bins(confidence)] = correct - confidence
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1), np.float64)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return part / whole; NaN where the whole is 0."""
    whole = np.broadcast_to(whole, part.shape)
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares
