"""What a stage is trained on: the cross entropy of its bag, and an instance loss on hidden features.

The instance loss is CLAM's clustering (Lu et al. 2021, "Instance-level clustering"): the patches of highest
attention stand for the bag's class, those of lowest attention for anything else, and a small classifier a
class has to tell them apart.
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
"""Where the two highest scores are this factor apart (as exponentials), the smooth loss is the hard one."""


def bag_loss(logits: Tensor, label: int, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of one bag.

    Args:
        logits: float (classes,).
        label: the bag's class.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        A scalar.
    """
    target = torch.tensor(label, device=logits.device)
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def smooth_top1_svm(scores: Tensor, labels: Tensor, *, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """The smooth top-1 support vector machine (Berrada et al. 2018, section 3), mean over rows.

    Every score but the label's gains the margin; the loss of a row is the highest of them all, made smooth by
    a log-sum-exp, less the label's score. A row whose two highest scores lie far apart takes the plain
    highest, as the paper does (section 4.3): there the two are the same up to rounding.

    Args:
        scores: float (rows, classes).
        labels: int64 (rows,).
        margin: what a wrong class's score must stay below the label's by.
        temperature: of the log-sum-exp.

    Returns:
        A scalar.
    """
    label_scores = scores.gather(1, labels[:, None])[:, 0]  # (rows, 1) -> (rows,)
    rivals = scores + margin * (1 - F.one_hot(labels, scores.shape[1]))
    smooth = temperature * torch.logsumexp(rivals / temperature, dim=1)
    two_highest = scores.topk(2, dim=1).values
    is_hard = two_highest[:, 0] - two_highest[:, 1] >= temperature * math.log(_HARD_BEYOND)
    return (torch.where(is_hard, rivals.amax(dim=1), smooth) - label_scores).mean()


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
    """CLAM's instance clustering on one bag.

    The classifier of the bag's class must call the ``k_sample`` patches of highest attention positive and the
    ``k_sample`` of lowest attention negative. With ``subtyping`` (classes exclude one another) the
    classifiers of all other classes must call the patches of highest attention negative, and the sum is
    divided by the number of classes. A bag of fewer than ``2 * k_sample`` patches is split in half, the odd
    one to the positives.

    Args:
        attention: float (patches,), raw scores.
        hidden: float (patches, hidden_width).
        classifiers: one a class, each from hidden features to two scores (negative, positive).
        label: the bag's class.
        kind: ``cross_entropy``, ``svm`` (the smooth top-1 SVM), or ``none`` for zero.
        k_sample: patches taken from either end.
        subtyping: train the other classes' classifiers too.

    Returns:
        A scalar.
    """
    if kind == "none":
        return attention.new_zeros(())
    patches = attention.shape[0]
    order = torch.argsort(attention.detach(), descending=True, stable=True)
    highest = hidden[order[: min(k_sample, (patches + 1) // 2)]]
    lowest = hidden[order[patches - min(k_sample, patches // 2) :]]
    compare = F.cross_entropy if kind == "cross_entropy" else smooth_top1_svm

    positive = torch.ones(len(highest), dtype=torch.int64, device=hidden.device)
    negative = torch.zeros(len(lowest), dtype=torch.int64, device=hidden.device)
    own_scores = classifiers[label](torch.cat([highest, lowest]))
    loss = compare(own_scores, torch.cat([positive, negative]))
    if not subtyping:
        return loss
    for index, classifier in enumerate(classifiers):
        if index != label:
            loss = loss + compare(classifier(highest), torch.zeros_like(positive))
    return loss / len(classifiers)
