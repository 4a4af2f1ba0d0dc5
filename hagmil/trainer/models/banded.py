"""Depth-wise convolution over a sequence, one kernel a head, as products of matrices.

1. A block of b outputs needs 2b inputs, b at least the taps less one: it is a banded matrix (b, 2b) times these, the
   same matrix for every block of a head.
2. Rows are cut to blocks of b; each is joined by the block after it.

A head's rows are its channels, hundreds of them, which share one kernel. Convolutions of ONNX Runtime and torch take
them for an image of one channel: ONNX Runtime computes eight output channels and keeps one, and took a tenth of the
time of a large bag (docs/decisions/0013-equal-landmarks.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_BLOCK = 32


def banded(kernels: Tensor) -> Tensor:
    """The banded matrices of some kernels (step 1).

    Args:
        kernels: float (heads, taps), taps odd.

    Returns:
        float (heads, b, 2b): row r holds the kernel from column r on, and zeros.
    """
    taps = kernels.shape[1]
    block = max(taps - 1, _SMALLEST_BLOCK)
    # Written again and again in lines of 2b + 1, read in lines of 2b, the kernel moves by one in each line.
    lines = F.pad(kernels, (0, 2 * block + 1 - taps)).repeat(1, block)
    return lines[:, : 2 * block * block].view(-1, block, 2 * block)


def convolve(rows: Tensor, bands: Tensor, taps: int) -> Tensor:
    """Convolve over the rows, zeros beyond their ends.

    Args:
        rows: float (..., n, width).
        bands: float (..., b, 2b), of :func:`banded`.
        taps: of the kernel.

    Returns:
        float (..., n, width).
    """
    *heads, length, width = rows.shape
    size = bands.shape[-2]
    blocks = (length + size - 1) // size
    before = taps // 2
    after = (blocks + 1) * size - before - length
    padded = F.pad(rows, (0, 0, before, after)).view(*heads, blocks + 1, size, width)
    joined = torch.cat([padded.narrow(-3, 0, blocks), padded.narrow(-3, 1, blocks)], dim=-2)  # step 2: (.., 2b, width)
    convolved = bands.unsqueeze(-3) @ joined  # (..., blocks, b, width)
    # Not a slice: that there are as many rows is nothing that the exporter can prove, and it would ask for it.
    return convolved.view(*heads, blocks * size, width).index_select(-2, torch.arange(length, device=rows.device))
