"""Nystrom self-attention over one bag (Xiong et al., AAAI 2021), written for export.

1. Put zero rows in front, so that the length divides by the number of landmarks m. Queries, keys and values, a third
   of the projection each, have no bias; so zero rows before the projection are zero rows after it.
2. Landmarks: means of consecutive rows, projected, m for the queries and m for the keys.
3. Softmax of landmarks against landmarks.
4. Softmax of query landmarks against padded rows, times the values: softmax3 · V.
5. The pseudo-inverse of step 3's matrix times that (:mod:`hagmil.trainer.models.pseudo_inverse`).
6. Softmax of rows against key landmarks, times that: softmax1 · (pinv · (softmax3 · V)).
7. Add a depth-wise convolution of the values over the sequence, one kernel a head.
8. Join the heads and project.

In evaluation, steps 4 and 6 go head by head: no more than one head's queries, keys and scores, which are the
largest tensors, exist at a time. In training they are kept for the way back in any case, and all heads go together.

Nothing branches on the number of rows: step 1 always pads, by arithmetic that stays symbolic, nothing is
sliced, and no axis is ever squeezed by its length. So one graph holds for every bag: of one row, of fewer
rows than landmarks, and at every multiple of m. Traced with ``backed_size_oblivious`` set, as
``torch.onnx.export`` sets it, and ``Dim("patches", min=1)``, it leaves no condition on the length at all; without
that setting the exporter takes every length in sight to differ from 1 because the example's does, and refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        # In two dimensions, (rows, columns of a head), because that is several times faster than in one.
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
        m = self.landmarks
        length = rows.shape[0]
        per_landmark = (length + m - 1) // m
        padding = m * per_landmark - length
        groups = 1 if self.training else self.heads
        queries_by, keys_by, values_by = (_cut(weight, groups) for weight in _cut(self.to_qkv.weight, 3))

        padded = _in_front(rows, padding)  # step 1: (m·l, width)
        means = padded.view(m, per_landmark, rows.shape[1]).mean(dim=1)  # step 2: (m, width)
        query_marks = [
            self._heads(means, weight) * self.scale for weight in queries_by
        ]  # each (heads of a group, m, width/h)
        key_marks = [self._heads(means, weight) for weight in keys_by]
        # bmm, not @: the latter asks whether there is one row only, and the exporter would specialise on the
        # answer.
        marks_to_marks = torch.softmax(
            torch.bmm(torch.cat(query_marks), torch.cat(key_marks).mT), dim=-1
        )  # step 3: (heads, m, m)

        values, of_rows = [], []
        for marks, key_by, value_by in zip(query_marks, keys_by, values_by, strict=True):  # step 4
            key, value = self._heads(rows, key_by), self._heads(rows, value_by)  # (heads of a group, n, width/h)
            scores = torch.bmm(marks, _in_front(key, padding).mT)  # (heads of a group, m, m·l)
            of_rows.append(torch.bmm(torch.softmax(scores, dim=-1), _in_front(value, padding)))
            values.append(value)
        of_marks = apply_pseudo_inverse(marks_to_marks, torch.cat(of_rows), self.pinv_iterations)  # step 5

        attended = []
        for marks, query_by, of_mark, value, kernel in zip(
            key_marks, queries_by, of_marks.chunk(groups), values, _cut(self.value_conv.weight, groups), strict=True
        ):  # step 6
            scores = torch.bmm(self._heads(rows, query_by), marks.mT * self.scale)  # (heads of a group, n, m)
            # Step 7: over padded rows it would be the same, since their values are zero as the convolution's
            # margin is.
            beside = F.conv2d(value, kernel, padding=self.value_conv.padding, groups=value.shape[0])
            attended.append(
                torch.bmm(torch.softmax(scores, dim=-1), of_mark) + beside
            )  # (heads of a group, n, width/h)
        # Step 8, head beside head: a transposed view would make the exporter ask for more than one row.
        heads_of_group = self.heads // groups
        joined = torch.cat([group[head] for group in attended for head in range(heads_of_group)], dim=1)  # (n, width)
        out: Tensor = self.dropout(self.to_out(joined))
        return out

    def _heads(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Project (rows, width) by (width of a group of heads, width), to (heads of the group, rows, width/heads)."""
        projected = F.linear(rows, weight)
        if weight.shape[0] == self.head_width:
            return projected.unsqueeze(0)
        return projected.view(rows.shape[0], -1, self.head_width).transpose(0, 1)


def _in_front(rows: Tensor, padding: int) -> Tensor:
    """Put zero rows in front of (..., rows, width)."""
    return F.pad(rows, (0, 0, padding, 0))


def _cut(weight: Tensor, parts: int) -> list[Tensor]:
    """Cut a weight in equal parts, by slices, which the exporter folds; of a split it makes a node."""
    size = weight.shape[0] // parts
    return [weight[start : start + size] for start in range(0, weight.shape[0], size)]
