"""The convolution by banded matrices equals that of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hagmil.trainer.models.depthwise_convolution import banded_matrices, convolve, cut_into_blocks

HEADS, WIDTH = 3, 5


@pytest.mark.parametrize("taps", [1, 3, 33, 47])
@pytest.mark.parametrize("length", [1, 2, 16, 31, 32, 33, 64, 65, 100])
def test_it_equals_the_convolution_of_torch(taps: int, length: int) -> None:
    kernels, rows = _numbers(taps, length)
    expected = F.conv2d(rows.unsqueeze(0), kernels.view(HEADS, 1, taps, 1), padding=(taps // 2, 0), groups=HEADS)[0]
    bands, blocks = banded_matrices(kernels), cut_into_blocks(length, taps, rows.device)
    torch.testing.assert_close(convolve(rows, bands, blocks), expected, rtol=0, atol=1e-12)
    for head in range(HEADS):
        torch.testing.assert_close(convolve(rows[head], bands[head], blocks), expected[head], rtol=0, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    kernels, rows = _numbers(3, 40)
    kernels.requires_grad_()
    rows.requires_grad_()
    blocks = cut_into_blocks(40, 3, rows.device)
    assert torch.autograd.gradcheck(lambda kernel, row: convolve(row, banded_matrices(kernel), blocks), (kernels, rows))


def _numbers(taps: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(taps * 1000 + length)
    kernels = torch.randn(HEADS, taps, dtype=torch.float64, generator=generator)
    return kernels, torch.randn(HEADS, length, WIDTH, dtype=torch.float64, generator=generator)
