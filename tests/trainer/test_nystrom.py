"""Nystrom attention against the same arithmetic, written plainly with matrices in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hagmil.trainer.models.nystrom import NystromAttention, pseudo_inverse

WIDTH, HEADS, LANDMARKS, TAPS = 12, 3, 6, 5
Array = NDArray[np.float64]


@pytest.fixture
def attention() -> NystromAttention:
    torch.manual_seed(0)
    module = NystromAttention(
        WIDTH, heads=HEADS, landmarks=LANDMARKS, pinv_iterations=6, value_kernel=TAPS, dropout=0.5
    )
    return module.double().eval()


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 11, 12, 13, 40])
def test_it_equals_the_plain_arithmetic(attention: NystromAttention, rows: int) -> None:
    bag = torch.randn(rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    with torch.inference_mode():
        ours = attention(bag).numpy()
    np.testing.assert_allclose(ours, _plainly(attention, bag.numpy()), rtol=0, atol=1e-12)


def test_the_pseudo_inverse_converges_to_the_inverse() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.softmax(3 * torch.randn(4, 8, 8, dtype=torch.float64, generator=generator), dim=-1)
    product = matrix @ pseudo_inverse(matrix, 40)
    np.testing.assert_allclose(product.numpy(), np.broadcast_to(np.eye(8), (4, 8, 8)), atol=1e-9)


def test_its_gradients_are_right() -> None:
    torch.manual_seed(2)
    module = NystromAttention(4, heads=2, landmarks=2, pinv_iterations=2, value_kernel=3, dropout=0.0).double()
    bag = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (bag,))


def _plainly(module: NystromAttention, bag: Array) -> Array:
    rows = len(bag)
    padding = -rows % LANDMARKS
    padded = np.concatenate([np.zeros((padding, WIDTH)), bag])
    query, key, value = np.split(padded @ _array(module.to_qkv.weight).T, 3, axis=1)
    joined = np.empty((rows, WIDTH))
    inner, largest_row, largest_column = [], 0.0, 0.0
    for head in range(HEADS):
        columns = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        q, k, v = query[:, columns] / np.sqrt(WIDTH // HEADS), key[:, columns], value[:, columns]
        q_marks = np.stack([part.mean(axis=0) for part in np.split(q, LANDMARKS)])
        k_marks = np.stack([part.mean(axis=0) for part in np.split(k, LANDMARKS)])
        middle = _softmax(q_marks @ k_marks.T)
        largest_row = max(largest_row, middle.sum(axis=1).max())
        largest_column = max(largest_column, middle.sum(axis=0).max())
        inner.append((columns, _softmax(q @ k_marks.T), middle, _softmax(q_marks @ k.T), v))
    for head, (columns, first, middle, third, v) in enumerate(inner):
        z = middle.T / (largest_row * largest_column)
        identity = np.eye(LANDMARKS)
        for _ in range(6):
            az = middle @ z
            z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
        kernel = _array(module.value_conv.weight)[head, 0, :, 0]
        around = np.pad(v, ((TAPS // 2, TAPS // 2), (0, 0)))
        smoothed = sum(kernel[tap] * around[tap : tap + len(v)] for tap in range(TAPS))
        joined[:, columns] = (first @ z @ third @ v + smoothed)[padding:]
    return joined @ _array(module.to_out.weight).T + _array(module.to_out.bias)


def _softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    softmaxed: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return softmaxed


def _array(parameter: torch.Tensor | None) -> Array:
    assert parameter is not None
    array: Array = parameter.detach().numpy()
    return array
