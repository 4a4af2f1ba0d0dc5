"""Nystrom attention over one bag (Xiong et al., AAAI 2021), written for export.

The paper pads the sequence with zero rows in front, so that its length is divisible by the number of landmarks m.
Queries, keys and values are each a third of the projection and have no bias, so zero rows stay zero. A bag of 1,000
patches with 768 landmarks has 536 zero rows and 268 zero landmarks; a bag of 200 patches has 568 of each. Here equal
rows are computed once: one zero row replaces all zero rows, and one zero landmark all landmarks of zero rows only. Each
has a multiplicity, the number of rows or landmarks that it replaces.

1. A landmark is the mean of l consecutive rows, l = ceil(n/m), computed before the projection; k = ceil(n/l) landmarks
   have rows of the bag. One zero landmark with multiplicity m - k (which may be 0) comes first.
2. An element with multiplicity c has weight c in a softmax: log c is added to its score.
3. Softmax of landmarks against landmarks: (k + 1) x (k + 1).
4. Softmax of query landmarks against rows, with one zero row of multiplicity m·l - n, times the values.
5. The pseudo-inverse of the matrix of step 3 times the result (:mod:`hagmil.trainer.models.pseudo_inverse`).
6. Softmax of rows against key landmarks, times the result: softmax1 · (pinv · (softmax3 · V)).
7. Add a depth-wise convolution of the values over the sequence, with one kernel per head
   (:mod:`hagmil.trainer.models.depthwise_convolution`).
8. Concatenate the heads, project, and remove the zero row.

In evaluation, steps 4 and 6 run one head at a time, so that the queries, keys and scores of one head only, the largest
tensors, are in memory. In training all heads run together, since the backward pass needs these tensors anyway.

No operation branches on the number of rows: k and l stay symbolic, the zero row and the zero landmark always exist, and
no axis is squeezed by its length. One graph is therefore valid for every bag: with one row, with fewer rows than
landmarks, and at every multiple of m. Traced with ``backed_size_oblivious``, as in ``torch.onnx.export``, and
``Dim("patches", min=1)``, the graph has no condition on the length. Without this setting the export fails, since the
exporter assumes from the example that each length differs from 1.

k <= m follows from the arithmetic, but is stated explicitly: TensorRT otherwise assumes k <= n, since l may be 1, and
reserves memory for a 10,000 x 10,000 matrix if a bag may have 10,000 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hagmil.trainer.models.depthwise_convolution import banded_matrices, convolve, cut_into_blocks
from hagmil.trainer.models.pseudo_inverse import apply_pseudo_inverse, pseudo_inverse


class NystromAttention(nn.Module):
    """Self-attention with a cost proportional to rows x landmarks instead of rows squared.

    Args:
        width: width of a row; divisible by ``heads``.
        heads: number of attention heads, each ``width / heads`` wide.
        landmarks: number of landmarks m.
        pinv_iterations: number of Newton-Schulz steps of the pseudo-inverse.
        value_kernel: taps of the convolution over the values; odd.
        dropout: dropout rate after the last projection, in training.
        count_padding: whether zero rows and zero landmarks count in every softmax, as published; if not, their
            multiplicity is 0, and a landmark is the mean of its rows of the bag.
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
        count_padding: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.landmarks = landmarks
        self.pinv_iterations = pinv_iterations
        self.head_width = width // heads
        self.scale = self.head_width**-0.5
        self.taps = value_kernel
        self.count_padding = count_padding
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        # Only its weight (heads, 1, taps, 1) is used, with the published name and initialisation.
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
        occupied = (length + per_landmark - 1) // per_landmark  # k
        occupied = torch.sym_min(occupied, self.landmarks)  # type: ignore[no-untyped-call]
        groups = 1 if self.training else self.heads
        single = groups == self.heads  # one head at a time, with two axes; else all heads, on the first axis
        queries_by, keys_by, values_by = (
            _equal_parts(weight, groups) for weight in _equal_parts(self.to_qkv.weight, 3)
        )
        bands = _split_heads(banded_matrices(self.value_conv.weight.flatten(1)), single)  # each (.., b, 2b)

        means = _pad_front(rows, occupied * per_landmark - length)  # step 1: (k·l, width)
        means = means.view(occupied, per_landmark, rows.shape[1]).mean(dim=1)  # (k, width)
        if not self.count_padding:
            shares = _pad_front(rows.new_ones(length, 1), occupied * per_landmark - length)  # of rows of the bag
            means = means / shares.view(occupied, per_landmark, 1).mean(dim=1)
        means = _pad_front(means, 1)  # (k + 1, width)
        zero_marks, zero_rows = self.landmarks - occupied, self.landmarks * per_landmark - length
        mark_counts = _multiplicities(rows, zero_marks if self.count_padding else 0, occupied)  # (k + 1,)
        mark_bias = mark_counts.log()  # step 2
        row_bias = _multiplicities(rows, zero_rows if self.count_padding else 0, length).log()  # (n + 1,)
        rows = _pad_front(rows, 1)  # (n + 1, width)
        blocks = cut_into_blocks(length + 1, self.taps, rows.device)

        query_marks = [self._heads(means, weight) * self.scale for weight in queries_by]  # each (.., k + 1, width/h)
        key_marks = [self._heads(means, weight) for weight in keys_by]
        marks_to_marks = torch.softmax(
            torch.baddbmm(mark_bias, _stack_heads(query_marks), _stack_heads(key_marks).mT), dim=-1
        )  # step 3: (heads, k + 1, k + 1)

        values, of_rows = [], []
        for marks, key_by, value_by in zip(query_marks, keys_by, values_by, strict=True):  # step 4
            key, value = self._heads(rows, key_by), self._heads(rows, value_by)  # (.., n + 1, width/h)
            scores = _scores(marks, key, row_bias)  # (.., k + 1, n + 1)
            of_rows.append(_matmul(torch.softmax(scores, dim=-1), value))
            values.append(value)
        of_marks = apply_pseudo_inverse(
            marks_to_marks, mark_counts, _stack_heads(of_rows), self.pinv_iterations
        )  # step 5: (heads, k + 1, width/h)

        attended = []
        for marks, query_by, of_mark, value, band in zip(
            key_marks, queries_by, _split_heads(of_marks, single), values, bands, strict=True
        ):  # step 6
            scores = _scores(self._heads(rows, query_by), marks * self.scale, mark_bias)  # (.., n + 1, k + 1)
            convolved = convolve(value, band, blocks)  # step 7
            attended.append(_matmul(torch.softmax(scores, dim=-1), of_mark) + convolved)  # (.., n + 1, width/h)
        # Step 8: concatenated, because the exporter would require more than one row for a transposed view.
        joined = torch.cat(attended if single else list(attended[0]), dim=1)  # (n + 1, width)
        out: Tensor = self.dropout(self.to_out(joined).narrow(0, 1, length))  # (n, width)
        return out

    def attention_of(self, rows: Tensor, row: int) -> Tensor:
        """Compute how much one row attends to all rows: the mean over heads of its row of softmax1 · pinv · softmax3.

        The values do not sum to 1, since a pseudo-inverse has negative elements.

        Args:
            rows: float (n, width), n at least 1.
            row: index of the attending row.

        Returns:
            float (n,).
        """
        length = rows.shape[0]
        per_landmark = (length + self.landmarks - 1) // self.landmarks  # l
        occupied = torch.sym_min((length + per_landmark - 1) // per_landmark, self.landmarks)  # type: ignore[no-untyped-call]
        means = _pad_front(rows, occupied * per_landmark - length).view(occupied, per_landmark, rows.shape[1])
        means = _pad_front(means.mean(dim=1), 1)  # step 1: (k + 1, width)
        mark_counts = _multiplicities(rows, self.landmarks - occupied, occupied)  # step 2
        row_counts = _multiplicities(rows, self.landmarks * per_landmark - length, length)
        query, key, _ = _equal_parts(self.to_qkv.weight, 3)
        padded = _pad_front(rows, 1)  # (n + 1, width)
        query_marks, key_marks = self._all_heads(means, query) * self.scale, self._all_heads(means, key)
        marks = torch.softmax(torch.baddbmm(mark_counts.log(), query_marks, key_marks.mT), dim=-1)  # step 3
        of_rows = torch.baddbmm(row_counts.log(), query_marks, self._all_heads(padded, key).mT)
        of_rows = torch.softmax(of_rows, dim=-1)  # step 4: (heads, k + 1, n + 1)
        one = self._all_heads(rows.narrow(0, row, 1), query) * self.scale  # (heads, 1, width/h)
        of_marks = torch.softmax(torch.baddbmm(mark_counts.log(), one, key_marks.mT), dim=-1)  # step 6
        inverse = pseudo_inverse(marks, mark_counts, self.pinv_iterations)
        attention = torch.bmm(torch.bmm(of_marks, inverse), of_rows)  # (heads, 1, n + 1)
        return attention.mean(dim=0).flatten().narrow(0, 1, length)

    def _all_heads(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Project (rows, width) to (heads, rows, width/h)."""
        return F.linear(rows, weight).view(rows.shape[0], self.heads, self.head_width).transpose(0, 1)

    def _heads(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Project (rows, width) to (rows, width/h) for the weight of one head, or to (heads, rows, width/h) for all."""
        projected = F.linear(rows, weight)
        if weight.shape[0] == self.head_width:
            return projected
        return projected.view(rows.shape[0], -1, self.head_width).transpose(0, 1)


def _pad_front(rows: Tensor, zeros: int) -> Tensor:
    """Put zero rows before (rows, width)."""
    return F.pad(rows, (0, 0, zeros, 0))


def _multiplicities(like: Tensor, of_zero: int, others: int) -> Tensor:
    """Multiplicities of a zero row and of other rows, each 1: (others + 1,)."""
    return torch.cat([like.new_full((1,), of_zero), like.new_ones(others)])


def _equal_parts(weight: Tensor, parts: int) -> list[Tensor]:
    """Cut a weight into equal parts by slices, which the exporter folds; a split would become a node."""
    size = weight.shape[0] // parts
    return [weight[start : start + size] for start in range(0, weight.shape[0], size)]


def _scores(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Scores of one or all heads, with a bias for each key: (..., queries, keys)."""
    if queries.dim() == 2:
        return torch.addmm(bias, queries, keys.mT)  # one node, without an extra pass over the largest tensors
    return torch.baddbmm(bias, queries, keys.mT)


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product of one or all heads, not by @: it tests for a single row, and the exporter would specialise."""
    return torch.mm(left, right) if left.dim() == 2 else torch.bmm(left, right)


def _stack_heads(heads: list[Tensor]) -> Tensor:
    """Stack tensors of single heads to (heads, ...); one tensor of all heads stays as it is."""
    return torch.stack(heads) if heads[0].dim() == 2 else heads[0]


def _split_heads(heads: Tensor, single: bool) -> list[Tensor]:
    """Split (heads, ...) into tensors of single heads, or return it as one tensor of all heads."""
    return list(heads.unbind(0)) if single else [heads]
