"""Nystrom self-attention over one bag (Xiong et al., AAAI 2021), written for export.

1. Queries, keys and values, a third of the projection each, without bias.
2. Put zero rows in front, so that the length divides by the number of landmarks m. Without bias, zero rows
   before the projection are zero rows after it.
3. Landmarks: means of consecutive rows, m for the queries and m for the keys.
4. Three softmaxes: rows against key landmarks, landmarks against landmarks, query landmarks against padded
   rows.
5. The pseudo-inverse of the middle one by Newton-Schulz steps.
6. Multiply from the right: softmax1 · (pinv · (softmax3 · V)).
7. Add a depth-wise convolution of the values over the sequence, one kernel a head.
8. Join the heads and project.

Nothing branches on the number of rows: step 2 always pads, by arithmetic that stays symbolic, nothing is
sliced, and no axis is ever squeezed by its length. So one graph holds for every bag: of one row, of fewer
rows than landmarks, and at every multiple of m. Traced with ``backed_size_oblivious`` set, as
``torch.onnx.export`` sets it, and ``Dim("patches", min=1)``, it leaves no condition on the length at all; without
that setting the exporter takes every length in sight to differ from 1 because the example's does, and refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        projected = self.to_qkv(rows)  # step 1: (n, 3·width)
        padded = F.pad(projected, (0, 0, m * per_landmark - length, 0))  # step 2: (m·l, 3·width)
        marks = padded.view(m, per_landmark, padded.shape[1]).mean(dim=1)  # step 3: (m, 3·width)

        query, _, own_value = self._split(projected)  # (heads, n, width/heads)
        _, key, value = self._split(padded)  # (heads, m·l, width/heads)
        query_marks, key_marks, _ = self._split(marks)  # (heads, m, width/heads)

        # bmm, not @: the latter asks whether there is one row only, and the exporter would specialise on the
        # answer.
        rows_to_marks = torch.softmax(torch.bmm(query, key_marks.mT), dim=-1)  # step 4: (heads, n, m)
        marks_to_marks = torch.softmax(torch.bmm(query_marks, key_marks.mT), dim=-1)  # (heads, m, m)
        marks_to_rows = torch.softmax(torch.bmm(query_marks, key.mT), dim=-1)  # (heads, m, m·l)

        inverse = pseudo_inverse(marks_to_marks, self.pinv_iterations)  # step 5
        of_marks = torch.bmm(inverse, torch.bmm(marks_to_rows, value))  # step 6: (heads, m, width/heads)
        attended = torch.bmm(rows_to_marks, of_marks)  # (heads, n, width/heads)
        # Step 7: over padded rows it would be the same, since their values are zero as the convolution's
        # margin is.
        attended = attended + self.value_conv(own_value)
        # Step 8, head beside head: a transposed view would make the exporter ask for more than one row.
        joined = torch.cat([attended[head] for head in range(self.heads)], dim=1)  # (n, width)
        out: Tensor = self.dropout(self.to_out(joined))
        return out

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, each (heads, rows, width/heads), of (rows, 3·width)."""
        rows = projected.shape[0]
        query, key, value = (
            part.view(rows, self.heads, self.head_width).transpose(0, 1) for part in projected.chunk(3, dim=1)
        )
        return query * self.scale, key, value


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """The Moore-Penrose inverse of softmaxed landmark scores, by iteration (Xiong et al. 2021, section 3.2).

    The start is Aᵀ divided by the largest row sum and the largest column sum, both over all heads. Each step
    is Z ← Z(13I − AZ(15I − AZ(7I − AZ)))/4 with the identities multiplied out.

    Args:
        matrix: float (heads, m, m), not negative.
        iterations: Newton-Schulz steps.

    Returns:
        float (heads, m, m).
    """
    largest = matrix.sum(dim=-1).amax(dim=(0, 1)) * matrix.sum(dim=-2).amax(dim=(0, 1))
    inverse = matrix.mT / largest
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * product - product @ (7 * product - product @ product)
        inverse = 0.25 * (13 * inverse - inverse @ inner)
    return inverse
