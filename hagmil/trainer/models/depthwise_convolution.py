"""Depth-wise convolution over a sequence, with one kernel per head, as matrix products.

1. A block of b outputs depends on 2b inputs, where b is at least the number of taps minus 1. It is the product of a
   banded matrix (b, 2b) and these inputs; the matrix is the same for every block of a head.
2. Cut the rows into blocks of b, and join each block with the next one.

The columns of a head, several hundred, share one kernel. The convolutions of ONNX Runtime and torch treat them as an
image with one channel: ONNX Runtime computes eight output channels and keeps one, which took a tenth of the time of a
large bag (docs/decisions/0013-equal-landmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_BLOCK = 32


def banded_matrices(kernels: Tensor) -> Tensor:
    """Create the banded matrices of kernels (step 1).

    Args:
        kernels: float (heads, taps), taps odd.

    Returns:
        float (heads, b, 2b): row r has the kernel from column r on, and zeros elsewhere.
    """
    taps = kernels.shape[1]
    block = _block(taps)
    # The kernel is repeated with a period of 2b + 1; read as rows of 2b, it moves by one column in each row.
    lines = F.pad(kernels, (0, 2 * block + 1 - taps)).repeat(1, block)
    return lines[:, : 2 * block * block].view(-1, block, 2 * block)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The division of the rows of a bag into blocks; computed once for all heads, so that it is exported once.

    Args:
        count: number of blocks of outputs.
        with_margin: number of blocks of inputs, ``count`` + 1.
        rows: number of outputs in all blocks.
        margins: number of zero rows before and after the rows of the bag.
        bag: int64 (n,), indices of the outputs that belong to the bag.
    """

    count: int
    with_margin: int
    rows: int
    margins: tuple[int, int]
    bag: Tensor


def cut_into_blocks(length: int, taps: int, device: torch.device) -> Blocks:
    """Divide the rows of a bag into blocks (step 2).

    Args:
        length: number of rows n.
        taps: number of taps of the kernel.
        device: device of the indices.
    """
    size = _block(taps)
    count = (length + size - 1) // size
    after = (count + 1) * size - taps // 2 - length
    return Blocks(count, count + 1, count * size, (taps // 2, after), torch.arange(length, device=device))


def convolve(rows: Tensor, bands: Tensor, blocks: Blocks) -> Tensor:
    """Convolve over the rows, with zero padding.

    Args:
        rows: float (..., n, width).
        bands: float (..., b, 2b), from :func:`banded_matrices`.
        blocks: from :func:`cut_into_blocks`.

    Returns:
        float (..., n, width).
    """
    heads, width = rows.shape[:-2], rows.shape[-1]
    padded = F.pad(rows, (0, 0, *blocks.margins)).view(*heads, blocks.with_margin, bands.shape[-2], width)
    joined = torch.cat([padded.narrow(-3, 0, blocks.count), padded.narrow(-3, 1, blocks.count)], dim=-2)
    convolved = bands.unsqueeze(-3) @ joined  # (.., b, 2b) by (.., blocks, 2b, width)
    # Not a slice: the exporter cannot prove that there are enough rows, and would add a condition.
    return convolved.view(*heads, blocks.rows, width).index_select(-2, blocks.bag)


def _block(taps: int) -> int:
    return max(taps - 1, _SMALLEST_BLOCK)
