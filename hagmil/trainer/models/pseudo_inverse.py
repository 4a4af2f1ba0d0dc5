"""The pseudo-inverse of softmaxed landmark scores, times a thin matrix (Xiong et al. 2021, section 3.2).

The paper iterates from Z0 = Aᵀ / c, c the largest row sum times the largest column sum (both over all heads):
Z ← Z p(AZ)/4 with p(X) = 13I - 15X + 7X² - X³, and multiplies the last Z by W. Each step is four products of m x m
matrices. Fewer do, since only Z·W is wanted and W is thin:

1. Early steps are the paper's: X = AZ and a new Z. They correct themselves: an error of X that is made in one step is
   seen in the next.
2. Late steps never form Z. What multiplies it is a polynomial in X, and so is the next X, which is X p(X)/4: two
   products with X² at hand. The polynomial is applied to W, from the right. These steps do not correct themselves,
   and errors grow tenfold with each: there are two.
3. Of the last step only p(X)/4 · W is wanted: W + EW + E²W + E³W/4 with E = I - X, in which nothing cancels.
4. Z, of the last early step, times what has become of W.

Where a landmark counts several times, the matrix has equal rows and equal columns. Products of such matrices have them,
too, so each is written once: a column times how often it counts. Written so, a product of two is the plain product of
what is written, and no step knows of it but the first, which transposes.

Only products and multiples are used, no identity matrix: a traced graph would keep it. Why two late steps and not
five, and why none in half precision: docs/decisions/0009-pseudo-inverse.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LATE_STEPS = 2


def apply_pseudo_inverse(matrix: Tensor, counts: Tensor, thin: Tensor, iterations: int) -> Tensor:
    """Multiply a matrix by the Moore-Penrose inverse of another, by iteration.

    Args:
        matrix: float (heads, m, m), not negative; what is inverted, each column times how often it counts.
        counts: float (m,), how often each row and column counts; 0 where it does not.
        thin: float (heads, m, k).
        iterations: Newton-Schulz steps, at least 1.

    Returns:
        float (heads, m, k).
    """
    if matrix.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(matrix.device.type):
        return torch.bmm(pseudo_inverse(matrix, counts, iterations), thin)
    early = max(iterations - 1 - _LATE_STEPS, 0)
    inverse = pseudo_inverse(matrix, counts, early)  # step 1
    product = torch.bmm(matrix, inverse)
    for _ in range(early, iterations - 1):  # step 2
        square = torch.bmm(product, product)
        once = torch.bmm(product, thin)
        thin = 0.25 * (13 * thin - 15 * once + torch.bmm(square, 7 * thin - once))
        product = 0.25 * (13 * product - 15 * square + torch.bmm(square, 7 * product - square))
    once = thin - torch.bmm(product, thin)  # step 3
    twice = once - torch.bmm(product, once)
    thrice = twice - torch.bmm(product, twice)
    return torch.bmm(inverse, thin + once + twice + 0.25 * thrice)  # step 4


def pseudo_inverse(matrix: Tensor, counts: Tensor, iterations: int) -> Tensor:
    """The Moore-Penrose inverse itself, each step as the paper has it, with the identities multiplied out.

    Args:
        matrix: float (heads, m, m), not negative, each column times how often it counts.
        counts: float (m,).
        iterations: Newton-Schulz steps.

    Returns:
        float (heads, m, m), each column times how often it counts.
    """
    plain = matrix / counts.clamp(min=1)  # a column that does not count is zero, and stays so
    column_sums = (counts.unsqueeze(-1) * plain).sum(dim=-2)  # (heads, m)
    largest = matrix.sum(dim=-1).amax(dim=(0, 1)) * column_sums.amax(dim=(0, 1))
    inverse = plain.mT * (counts / largest)
    for _ in range(iterations):
        product = torch.bmm(matrix, inverse)
        inner = 15 * product - torch.bmm(product, 7 * product - torch.bmm(product, product))
        inverse = 0.25 * (13 * inverse - torch.bmm(inverse, inner))
    return inverse
