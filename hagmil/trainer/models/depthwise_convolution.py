"""Depth-wise convolution over a sequence, one kernel a head, as products of matrices.

1. A block of b outputs needs 2b inputs, b at least the taps less one: it is a banded matrix (b, 2b) times these, the
   same matrix for every block of a head.
2. Rows are cut to blocks of b; each is joined by the block after it.

A head's rows are its channels, hundreds of them, which share one kernel. Convolutions of ONNX Runtime and torch take
them for an image of one channel: ONNX Runtime computes eight output channels and keeps one, and took a tenth of the
time of a large bag (docs/decisions/0013-equal-landmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_BLOCK = 32


def banded_matrices(kernels: Tensor) -> Tensor:
    """The banded matrices of some kernels (step 1).

    Args:
        kernels: float (heads, taps), taps odd.

    Returns:
        float (heads, b, 2b): row r holds the kernel from column r on, and zeros.
    """
    taps = kernels.shape[1]
    block = _block(taps)
    # Written again and again in lines of 2b + 1, read in lines of 2b, the kernel moves by one in each line.
    lines = F.pad(kernels, (0, 2 * block + 1 - taps)).repeat(1, block)
    return lines[:, : 2 * block * block].view(-1, block, 2 * block)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a bag's rows are cut to blocks; said once for all heads, since the exporter writes down each calculation.

    Args:
        count: blocks of outputs.
        with_margin: blocks of inputs, one more.
        rows: outputs in all blocks.
        margins: zero rows before and after the bag's.
        bag: int64 (n,), the outputs that are the bag's.
    """

    count: int
    with_margin: int
    rows: int
    margins: tuple[int, int]
    bag: Tensor


def cut_into_blocks(length: int, taps: int, device: torch.device) -> Blocks:
    """Cut a bag to blocks (step 2).

    Args:
        length: n, its rows.
        taps: of the kernel.
        device: where its tensors are.
    """
    size = _block(taps)
    count = (length + size - 1) // size
    after = (count + 1) * size - taps // 2 - length
    return Blocks(count, count + 1, count * size, (taps // 2, after), torch.arange(length, device=device))


def convolve(rows: Tensor, bands: Tensor, blocks: Blocks) -> Tensor:
    """Convolve over the rows, zeros beyond their ends.

    Args:
        rows: float (..., n, width).
        bands: float (..., b, 2b), of :func:`banded_matrices`.
        blocks: of :func:`cut_into_blocks`.

    Returns:
        float (..., n, width).
    """
    heads, width = rows.shape[:-2], rows.shape[-1]
    padded = F.pad(rows, (0, 0, *blocks.margins)).view(*heads, blocks.with_margin, bands.shape[-2], width)
    joined = torch.cat([padded.narrow(-3, 0, blocks.count), padded.narrow(-3, 1, blocks.count)], dim=-2)
    convolved = bands.unsqueeze(-3) @ joined  # (.., b, 2b) by (.., blocks, 2b, width)
    # Not a slice: that there are as many rows is nothing that the exporter can prove, and it would ask for it.
    return convolved.view(*heads, blocks.rows, width).index_select(-2, blocks.bag)


def _block(taps: int) -> int:
    return max(taps - 1, _SMALLEST_BLOCK)
