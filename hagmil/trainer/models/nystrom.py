"""Nystrom attention over one bag (Xiong et al., AAAI 2021), written for export.

The paper puts zero rows in front, so that the length divides by the number of landmarks m; queries, keys and values,
a third of the projection each, have no bias, so zero rows before the projection are zero rows after it. In a bag of
1,000 patches with 768 landmarks these are 536 rows and 268 landmarks, in one of 200 patches 568 of each, all equal.
Equal rows are not computed twice here: one zero row stands for all, one zero landmark for all that hold zero rows
alone, and each is counted as often as the paper has it.

1. A landmark is the mean of l consecutive rows, l = ceil(n/m); k = ceil(n/l) of them hold rows of the bag. The mean is
   taken before the projection. One zero landmark, counted m - k times (0 where all hold rows), comes first.
2. What is counted c times weighs c times in a softmax: log c is added to its score.
3. Softmax of landmarks against landmarks: (k + 1) x (k + 1).
4. Softmax of query landmarks against rows, one zero row that is counted m·l - n times among them, times the values.
5. The pseudo-inverse of step 3's matrix times that (:mod:`hagmil.trainer.models.pseudo_inverse`).
6. Softmax of rows against key landmarks, times that: softmax1 · (pinv · (softmax3 · V)).
7. Add a depth-wise convolution of the values over the sequence, one kernel a head
   (:mod:`hagmil.trainer.models.depthwise_convolution`).
8. Join the heads and project; the zero row goes.

In evaluation, steps 4 and 6 go head by head: no more than one head's queries, keys and scores, which are the
largest tensors, exist at a time. In training they are kept for the way back in any case, and all heads go together.

Nothing branches on the number of rows: k and l are arithmetic that stays symbolic, the zero row and the zero landmark
are always there, and no axis is ever squeezed by its length. So one graph holds for every bag: of one row, of fewer
rows than landmarks, and at every multiple of m. Traced with ``backed_size_oblivious`` set, as ``torch.onnx.export``
sets it, and ``Dim("patches", min=1)``, it leaves no condition on the length at all; without that setting the exporter
takes every length in sight to differ from 1 because the example's does, and refuses.

That k is m at most follows from its arithmetic, and is said all the same: TensorRT takes k to be n at most, since l may
be 1, and lays out memory for a matrix of 10,000 x 10,000 where a bag may have 10,000 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hagmil.trainer.models.depthwise_convolution import banded_matrices, convolve, cut_into_blocks
from hagmil.trainer.models.pseudo_inverse import apply_pseudo_inverse


class NystromAttention(nn.Module):
    """Self-attention whose cost grows with rows x landmarks instead of rows squared.

    Args:
        width: length of a row; divisible by ``heads``.
        heads: attention heads of ``width / heads`` each.
        landmarks: m, the number of landmarks.
        pinv_iterations: Newton-Schulz steps for the pseudo-inverse.
        value_kernel: taps of the convolution over the values; odd.
        dropout: share dropped after the last projection, in training.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        landmarks: int,
        pinv_iterations: int,
        value_kernel: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.landmarks = landmarks
        self.pinv_iterations = pinv_iterations
        self.head_width = width // heads
        self.scale = self.head_width**-0.5
        self.taps = value_kernel
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        # It holds the kernels, (heads, 1, taps, 1), under their published name and with their initialisation.
        self.value_conv = nn.Conv2d(
            heads, heads, (value_kernel, 1), padding=(value_kernel // 2, 0), groups=heads, bias=False
        )
        self.to_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Attend over all rows.

        Args:
            rows: float (n, width), n at least 1.

        Returns:
            float (n, width).
        """
        length = rows.shape[0]
        per_landmark = (length + self.landmarks - 1) // self.landmarks  # l
        held = (length + per_landmark - 1) // per_landmark  # k
        held = torch.sym_min(held, self.landmarks)  # type: ignore[no-untyped-call]
        groups = 1 if self.training else self.heads
        single = groups == self.heads  # one head at a time, of two axes; else all, heads first
        queries_by, keys_by, values_by = (_cut(weight, groups) for weight in _cut(self.to_qkv.weight, 3))
        bands = _apart(banded_matrices(self.value_conv.weight.flatten(1)), single)  # each (.., b, 2b)

        means = _in_front(rows, held * per_landmark - length)  # step 1: (k·l, width)
        means = _in_front(means.view(held, per_landmark, rows.shape[1]).mean(dim=1), 1)  # (k + 1, width)
        mark_counts = _counts(rows, self.landmarks - held, held)  # (k + 1,)
        mark_bias = mark_counts.log()  # step 2
        row_bias = _counts(rows, self.landmarks * per_landmark - length, length).log()  # (n + 1,)
        rows = _in_front(rows, 1)  # (n + 1, width)
        blocks = cut_into_blocks(length + 1, self.taps, rows.device)

        query_marks = [self._heads(means, weight) * self.scale for weight in queries_by]  # each (.., k + 1, width/h)
        key_marks = [self._heads(means, weight) for weight in keys_by]
        marks_to_marks = torch.softmax(
            torch.baddbmm(mark_bias, _together(query_marks), _together(key_marks).mT), dim=-1
        )  # step 3: (heads, k + 1, k + 1)

        values, of_rows = [], []
        for marks, key_by, value_by in zip(query_marks, keys_by, values_by, strict=True):  # step 4
            key, value = self._heads(rows, key_by), self._heads(rows, value_by)  # (.., n + 1, width/h)
            scores = _scores(marks, key, row_bias)  # (.., k + 1, n + 1)
            of_rows.append(_product(torch.softmax(scores, dim=-1), value))
            values.append(value)
        of_marks = apply_pseudo_inverse(
            marks_to_marks, mark_counts, _together(of_rows), self.pinv_iterations
        )  # step 5: (heads, k + 1, width/h)

        attended = []
        for marks, query_by, of_mark, value, band in zip(
            key_marks, queries_by, _apart(of_marks, single), values, bands, strict=True
        ):  # step 6
            scores = _scores(self._heads(rows, query_by), marks * self.scale, mark_bias)  # (.., n + 1, k + 1)
            beside = convolve(value, band, blocks)  # step 7
            attended.append(_product(torch.softmax(scores, dim=-1), of_mark) + beside)  # (.., n + 1, width/h)
        # Step 8, head beside head: a transposed view would make the exporter ask for more than one row.
        joined = torch.cat(attended if single else list(attended[0]), dim=1)  # (n + 1, width)
        out: Tensor = self.dropout(self.to_out(joined).narrow(0, 1, length))  # (n, width)
        return out

    def _heads(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Project (rows, width) by one head's weight to (rows, width/h), by all heads' to (heads, rows, width/h)."""
        projected = F.linear(rows, weight)
        if weight.shape[0] == self.head_width:
            return projected
        return projected.view(rows.shape[0], -1, self.head_width).transpose(0, 1)


def _in_front(rows: Tensor, zeros: int) -> Tensor:
    """Put zero rows in front of (rows, width)."""
    return F.pad(rows, (0, 0, zeros, 0))


def _counts(like: Tensor, of_zero: int, others: int) -> Tensor:
    """How often each row counts, a zero row first: (others + 1,)."""
    return torch.cat([like.new_full((1,), of_zero), like.new_ones(others)])


def _cut(weight: Tensor, parts: int) -> list[Tensor]:
    """Cut a weight in equal parts, by slices, which the exporter folds; of a split it makes a node."""
    size = weight.shape[0] // parts
    return [weight[start : start + size] for start in range(0, weight.shape[0], size)]


def _scores(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Scores of one head, or of heads, with a bias for each key: (..., queries, keys)."""
    if queries.dim() == 2:
        return torch.addmm(bias, queries, keys.mT)  # one node, and no pass over the largest tensors for the bias
    return torch.baddbmm(bias, queries, keys.mT)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Not by @, which asks whether there is one row only, and the exporter would specialise on the answer."""
    return torch.mm(left, right) if left.dim() == 2 else torch.bmm(left, right)


def _together(heads: list[Tensor]) -> Tensor:
    """Tensors of one head each, or one of all, as (heads, ...)."""
    return torch.stack(heads) if heads[0].dim() == 2 else heads[0]


def _apart(heads: Tensor, single: bool) -> list[Tensor]:
    """(heads, ...) as tensors of one head each, or as one of all."""
    return list(heads.unbind(0)) if single else [heads]
