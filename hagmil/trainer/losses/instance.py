"""Losses of a HAG-MIL stage: cross entropy of the bag, and an instance loss on hidden features.

The instance loss is that of CLAM (Lu et al. 2021, "Instance-level clustering"): the patches with the highest attention
are positive examples of the class of the bag, those with the lowest attention negative examples, and one small
classifier per class is trained to separate them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

InstanceLossKind = Literal["cross_entropy", "svm", "none"]

_HARD_BEYOND = 1000.0
"""If the exponentials of the two highest scores differ by this factor, the hard loss is used."""


def bag_loss(logits: Tensor, label: int, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of one bag.

    Args:
        logits: float (classes,).
        label: class of the bag.
        label_smoothing: share of the target that is distributed equally over all classes.

    Returns:
        A scalar.
    """
    target = torch.tensor(label, device=logits.device)
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def smooth_top1_svm(scores: Tensor, labels: Tensor, *, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Smooth top-1 SVM loss (Berrada et al. 2018, section 3), mean over rows.

    The margin is added to every score but that of the label. The loss of a row is the log-sum-exp of these scores minus
    the score of the label. If the two highest scores of a row are far apart, the maximum replaces the log-sum-exp, as
    in section 4.3 of the paper; both are then equal up to rounding.

    Args:
        scores: float (rows, classes).
        labels: int64 (rows,).
        margin: required distance between the score of the label and those of other classes.
        temperature: temperature of the log-sum-exp.

    Returns:
        A scalar.
    """
    label_scores = scores.gather(1, labels[:, None])[:, 0]  # (rows, 1) -> (rows,)
    with_margin = scores + margin * (1 - F.one_hot(labels, scores.shape[1]))
    smooth = temperature * torch.logsumexp(with_margin / temperature, dim=1)
    two_highest = scores.topk(2, dim=1).values
    is_hard = two_highest[:, 0] - two_highest[:, 1] >= temperature * math.log(_HARD_BEYOND)
    return (torch.where(is_hard, with_margin.amax(dim=1), smooth) - label_scores).mean()


def instance_loss(
    attention: Tensor,
    hidden: Tensor,
    classifiers: Sequence[nn.Module],
    label: int,
    *,
    kind: InstanceLossKind,
    k_sample: int,
    subtyping: bool,
) -> Tensor:
    """Instance clustering loss of CLAM for one bag.

    For the classifier of the bag's class, the ``k_sample`` patches with the highest attention are positive and the
    ``k_sample`` patches with the lowest attention negative. With ``subtyping`` (mutually exclusive classes), the
    patches with the highest attention are negative for the classifiers of all other classes, and the sum is divided by
    the number of classes. A bag of fewer than ``2 * k_sample`` patches is split in half; the middle patch of an odd
    number is positive.

    Args:
        attention: float (patches,), raw scores; or (classes, patches), of which each classifier uses its own row.
        hidden: float (patches, hidden_width).
        classifiers: one for each class, from hidden features to two scores (negative, positive).
        label: class of the bag.
        kind: ``cross_entropy``, ``svm`` (the smooth top-1 SVM), or ``none`` for zero.
        k_sample: number of patches with the highest and with the lowest attention.
        subtyping: also train the classifiers of the other classes.

    Returns:
        A scalar.
    """
    if kind == "none":
        return attention.new_zeros(())
    patches = attention.shape[-1]
    orders = torch.argsort(attention.detach(), descending=True, stable=True).expand(len(classifiers), patches)
    positives = min(k_sample, (patches + 1) // 2)
    highest = hidden[orders[label, :positives]]
    lowest = hidden[orders[label, patches - min(k_sample, patches // 2) :]]
    compare = F.cross_entropy if kind == "cross_entropy" else smooth_top1_svm

    positive = torch.ones(len(highest), dtype=torch.int64, device=hidden.device)
    negative = torch.zeros(len(lowest), dtype=torch.int64, device=hidden.device)
    own_scores = classifiers[label](torch.cat([highest, lowest]))
    loss = compare(own_scores, torch.cat([positive, negative]))
    if not subtyping:
        return loss
    for index, classifier in enumerate(classifiers):
        if index != label:
            loss = loss + compare(classifier(hidden[orders[index, :positives]]), torch.zeros_like(positive))
    return loss / len(classifiers)
