"""The pseudo-inverse of a softmax of landmark scores, times a thin matrix (Xiong et al. 2021, section 3.2).

The paper iterates from Z0 = Aᵀ / c, where c is the largest row sum times the largest column sum (both over all heads):
Z ← Z p(AZ)/4 with p(X) = 13I - 15X + 7X² - X³, and multiplies the last Z by W. Each step takes four products of m x m
matrices. Fewer products are sufficient, since only Z·W is needed and W is thin:

1. Early steps are those of the paper: compute X = AZ and a new Z. They are self-correcting, since each step computes X
   from Z again.
2. Late steps do not compute Z. The factor of Z is a polynomial in X, and so is the next X, X p(X)/4; both need two
   products, given X². The polynomial is applied to W from the right. These steps are not self-correcting, and errors
   grow tenfold in each; therefore there are only two.
3. The last step only needs p(X)/4 · W = W + EW + E²W + E³W/4 with E = I - X, which has no cancellation.
4. Multiply Z of the last early step by the resulting W.

If a landmark has a multiplicity above 1, the full matrix has equal rows and equal columns, and so have its products.
Each row and column is then stored once, and columns are multiplied by their multiplicity. With this representation the
product of two matrices is the ordinary product; only the transpose in the first step must account for multiplicities.

No identity matrix is used, since a traced graph would store it. docs/decisions/0009-pseudo-inverse.md explains why
there are two late steps and not five, and none in half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LATE_STEPS = 2


def apply_pseudo_inverse(matrix: Tensor, counts: Tensor, thin: Tensor, iterations: int) -> Tensor:
    """Multiply the Moore-Penrose inverse of a matrix by a thin matrix, by iteration.

    Args:
        matrix: float (heads, m, m), not negative; the matrix to invert, columns multiplied by their multiplicity.
        counts: float (m,), multiplicity of each row and column; 0 for one that is not used.
        thin: float (heads, m, k), W.
        iterations: number of Newton-Schulz steps, at least 1.

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
    """Compute the Moore-Penrose inverse with the steps of the paper, with the identity matrices multiplied out.

    Args:
        matrix: float (heads, m, m), not negative, columns multiplied by their multiplicity.
        counts: float (m,), multiplicity of each row and column.
        iterations: number of Newton-Schulz steps.

    Returns:
        float (heads, m, m), columns multiplied by their multiplicity.
    """
    plain = matrix / counts.clamp(min=1)  # a column with multiplicity 0 is and stays zero
    column_sums = (counts.unsqueeze(-1) * plain).sum(dim=-2)  # (heads, m)
    largest = matrix.sum(dim=-1).amax(dim=(0, 1)) * column_sums.amax(dim=(0, 1))
    inverse = plain.mT * (counts / largest)
    for _ in range(iterations):
        product = torch.bmm(matrix, inverse)
        inner = 15 * product - torch.bmm(product, 7 * product - torch.bmm(product, product))
        inverse = 0.25 * (13 * inverse - torch.bmm(inverse, inner))
    return inverse
