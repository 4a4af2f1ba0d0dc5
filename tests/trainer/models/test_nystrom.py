"""Nystrom attention equals a direct implementation with NumPy matrices in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hagmil.trainer.models.nystrom import NystromAttention
from hagmil.trainer.models.pseudo_inverse import apply_pseudo_inverse, pseudo_inverse

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
def test_it_equals_the_reference_arithmetic(attention: NystromAttention, rows: int) -> None:
    bag = torch.randn(rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    with torch.inference_mode():
        ours = attention(bag).numpy()
    np.testing.assert_allclose(ours, _plainly(attention, bag.numpy()), rtol=0, atol=1e-12)


def test_the_pseudo_inverse_converges_to_the_inverse() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.softmax(3 * torch.randn(4, 8, 8, dtype=torch.float64, generator=generator), dim=-1)
    product = matrix @ pseudo_inverse(matrix, torch.ones(8, dtype=torch.float64), 40)
    np.testing.assert_allclose(product.numpy(), np.broadcast_to(np.eye(8), (4, 8, 8)), atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 6, 12])
def test_applying_the_inverse_equals_multiplying_by_it(iterations: int) -> None:
    matrix, thin = _scores(1.0), _thin()
    expected = pseudo_inverse(matrix, _ones(matrix), iterations) @ thin
    found = apply_pseudo_inverse(matrix, _ones(matrix), thin, iterations)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_applying_the_inverse_gives_the_same_gradients() -> None:
    def gradients(apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        matrix, thin = _scores(1.0).requires_grad_(), _thin().requires_grad_()
        return torch.autograd.grad(apply(matrix, thin).square().sum(), (matrix, thin))

    ours = gradients(lambda matrix, thin: apply_pseudo_inverse(matrix, _ones(matrix), thin, 6))
    published = gradients(lambda matrix, thin: pseudo_inverse(matrix, _ones(matrix), 6) @ thin)
    torch.testing.assert_close(ours, published, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zeros", [0, 1, 5])
def test_equal_rows_and_columns_can_be_stored_once(zeros: int) -> None:
    scores = torch.randn(3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    scores[:, :zeros], scores[:, :, :zeros] = 0, 0
    thin = torch.randn(3, 12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    thin[:, :zeros] = thin[:, :1]
    matrix = torch.softmax(scores, dim=-1)
    expected = pseudo_inverse(matrix, _ones(matrix), 6) @ thin

    written = [0, *range(zeros, 12)]  # without zero landmarks, one with multiplicity 0
    counts = torch.tensor([float(zeros)] + [1.0] * (12 - zeros), dtype=torch.float64)
    small = scores[:, written][:, :, written].clone()
    small[:, 0], small[:, :, 0] = 0, 0
    small = torch.softmax(small + counts.log(), dim=-1)
    found = apply_pseudo_inverse(small, counts, thin[:, written], 6)
    torch.testing.assert_close(found[:, 1:], expected[:, zeros:], rtol=0, atol=1e-12)
    if zeros:
        torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=0, atol=1e-12)


# The error is 1 to 8 times that of the published order here; with five late steps it would be 9 to 100 times.
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 3.0, 8.0])
def test_float32_error_is_close_to_that_of_the_published_order(sharpness: float) -> None:
    matrix, thin = _scores(sharpness, marks=64, width=16), _thin(marks=64)
    exact = pseudo_inverse(matrix, _ones(matrix), 6) @ thin
    published = (pseudo_inverse(matrix.float(), _ones(matrix.float()), 6) @ thin.float() - exact).abs().max()
    ours = (apply_pseudo_inverse(matrix.float(), _ones(matrix.float()), thin.float(), 6) - exact).abs().max()
    assert ours <= 3 * published + 2e-6 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_uses_self_correcting_steps_only(dtype: torch.dtype) -> None:
    matrix, thin = _scores(3.0).to(dtype), _thin().to(dtype)
    expected = pseudo_inverse(matrix, _ones(matrix), 6) @ thin
    torch.testing.assert_close(apply_pseudo_inverse(matrix, _ones(matrix), thin, 6), expected, rtol=0, atol=0)


def test_autocast_uses_self_correcting_steps_only() -> None:
    matrix, thin = _scores(3.0).float(), _thin().float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.bmm(pseudo_inverse(matrix, _ones(matrix), 6), thin)
        torch.testing.assert_close(apply_pseudo_inverse(matrix, _ones(matrix), thin, 6), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 5, 6, 13])
def test_all_heads_together_equal_one_head_at_a_time(rows: int) -> None:
    torch.manual_seed(3)
    module = NystromAttention(12, heads=3, landmarks=6, pinv_iterations=6, value_kernel=5, dropout=0.0).double()
    bag = torch.randn(rows, 12, dtype=torch.float64)
    together = module.train()(bag)
    torch.testing.assert_close(module.eval()(bag), together, rtol=0, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    torch.manual_seed(2)
    module = NystromAttention(4, heads=2, landmarks=2, pinv_iterations=2, value_kernel=3, dropout=0.0).double()
    bag = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (bag,))


def _scores(sharpness: float, marks: int = 16, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    query, key = sharpness**0.5 * torch.randn(2, 3, marks, width, dtype=torch.float64, generator=generator)
    return torch.softmax(query @ key.mT / width**0.5, dim=-1).float().double()


def _ones(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.new_ones(matrix.shape[-1])


def _thin(marks: int = 16) -> torch.Tensor:
    thin = torch.randn(3, marks, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    return thin.float().double()


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


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_without_counted_padding_a_small_bag_has_as_many_landmarks_as_rows(rows: int) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"heads": 2, "pinv_iterations": 6, "value_kernel": 3, "dropout": 0.0}
    uncounted = NystromAttention(8, landmarks=12, count_padding=False, **sizes).double().eval()
    unpadded = NystromAttention(8, landmarks=rows, **sizes).double().eval()
    unpadded.load_state_dict(uncounted.state_dict())
    bag = torch.randn(rows, 8, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(uncounted(bag), unpadded(bag))


def test_without_counted_padding_equal_rows_attend_as_one() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"heads": 2, "landmarks": 6, "pinv_iterations": 30, "value_kernel": 3, "dropout": 0.0}
    module = NystromAttention(8, count_padding=False, **sizes).double().eval()
    torch.nn.init.zeros_(module.value_conv.weight)
    bag = torch.randn(8, dtype=torch.float64).expand(13, 8)
    with torch.inference_mode():
        value = module.to_out(torch.nn.functional.linear(bag, module.to_qkv.weight[16:]))
        torch.testing.assert_close(module(bag), value)
