"""NMTune's three loss terms on batches of features, exact and cheap, with gradients that are always finite.

Z are the tuned features and F the frozen ones: M samples in a batch, D features, H heads.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nml_kit.errors import InvalidInputError, unknown_name

Recipe = Literal["paper", "reference"]

TERM_WEIGHTS = MappingProxyType({"paper": (0.01, 0.01, 0.01), "reference": (1.0, 0.04, 0.001)})
"""Weights of (mse, cov, svd) in the loss L = L_CE + Σ wᵢ·termᵢ, by recipe."""

_LEADING_VALUES = {"paper": 1, "reference": 5}


def term_weights(weights: float | Sequence[float] | None, recipe: Recipe) -> tuple[float, float, float]:
    """Return the weights of (mse, cov, svd): the recipe's for None, one number for each, or three as they are.

    Raises InvalidInputError for anything else or a number below 0, and UnknownNameError for an unknown recipe.

    >>> term_weights(0.1, "paper")
    (0.1, 0.1, 0.1)
    """
    if recipe not in TERM_WEIGHTS:
        raise unknown_name("recipe", str(recipe), TERM_WEIGHTS)
    if weights is None:
        return TERM_WEIGHTS[recipe]
    numbers = np.asarray(weights, dtype=np.float64)
    if numbers.shape not in ((), (3,)) or not np.all(np.isfinite(numbers) & (numbers >= 0)):
        raise InvalidInputError(f"Expected weights of None, one number >= 0 or three (mse, cov, svd), got {weights!r}.")
    mse, cov, svd = np.broadcast_to(numbers, 3).tolist()
    return mse, cov, svd


def nmtune_terms(
    Z: Float[Tensor, "m d"], F: Float[Tensor, "m d"], *, recipe: Recipe = "paper"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return NMTune's loss terms (mse, cov, svd) of a batch as differentiable scalars.

    Z and F are (M, D), of one floating dtype and device. Chen et al., ICLR 2024, section 4.1:

    - mse = mean over samples of ‖F/‖F‖ − Z/‖Z‖‖² (rows normalised; between 0 and 4)
    - cov = (1/D) Σ_{i≠j} C_ij², C = Z_cᵀ Z_c / (M − 1), Z_c the column-centred Z (0 for M = 1)
    - svd = −σ₁(Z) / Σσ(Z), uncentred (between −1 and 0)

    `recipe="reference"` follows the authors' released code: mse is also the mean over features (mse / D), and svd takes
    the mean of the five largest σ (of all, when there are fewer) in place of σ₁.

    All arithmetic is float64: a Gram matrix in float32 loses the small singular values. The terms come back in the
    dtype of Z, or float32 if that is narrower. Both Z and F receive gradients, once differentiable and finite for every
    finite batch: singular values with σ² ≤ ε·min(M, D)·σ₁², zero rows and an all-zero Z (svd = 0) get zero. Raises
    InvalidInputError when Z and F are not both (M, D) floating tensors or hold NaN or inf.

    >>> F = torch.eye(2)
    >>> Z = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> mse, cov, svd = nmtune_terms(Z, F)
    >>> mse.item(), cov.item(), round(svd.item(), 6)
    (0.0, 4.0, -0.5)
    """
    if recipe not in TERM_WEIGHTS:
        raise unknown_name("recipe", recipe, TERM_WEIGHTS)
    for name, tensor in (("Z", Z), ("F", F)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InvalidInputError(f"Expected {name} to be a floating-point torch tensor, got {came}.")
    if Z.ndim != 2 or Z.shape != F.shape or 0 in Z.shape:
        raise InvalidInputError(
            f"Expected Z and F of one shape (samples, features), at least 1 × 1; "
            f"got Z {tuple(Z.shape)} and F {tuple(F.shape)}."
        )
    mse, cov, svd = stacked_terms(Z[None], F[None], recipe)[:, 0].unbind()
    return mse, cov, svd


def stacked_terms(Z: Float[Tensor, "h m d"], F: Float[Tensor, "#h m d"], recipe: Recipe) -> Float[Tensor, "3 h"]:
    """Return the terms of H heads at once, each as `nmtune_terms` gives them."""
    terms: Tensor = _Terms.apply(Z, F, recipe)
    return terms


class _Terms(torch.autograd.Function):
    """The terms with their gradient in closed form.

    Autograd through an SVD, or through √λ, divides by differences of singular values or by zero: duplicated, low-rank
    and collapsed batches give NaN. The terms need neither: they depend on σ only through Σσ and the leading values,
    whose derivative is U diag(h) Vᵀ = U diag(h/σ) Uᵀ Z = Z V diag(h/σ) Vᵀ with h = ∂svd/∂σ. Gram matrices of the
    smaller side serve cov and svd, since ‖Z_cᵀ Z_c‖ = ‖Z_c Z_cᵀ‖.
    """

    @staticmethod
    def forward(ctx: Any, Z: Tensor, F: Tensor, recipe: Recipe) -> Tensor:
        ctx.dtypes = Z.dtype, F.dtype
        Z, F = Z.double(), F.double()
        _, samples, features = Z.shape
        ctx.wide = samples < features
        ctx.mse_share = 1.0 / (samples * (features if recipe == "reference" else 1))
        z_inverse, f_inverse = _inverse_norms(Z), _inverse_norms(F)
        unit_Z, unit_F = Z * z_inverse, F * f_inverse
        cosine = torch.linalg.vecdot(unit_Z, unit_F).unsqueeze(2)
        squared_norms = (z_inverse > 0).double() + (f_inverse > 0)  # of unit rows, or of rows of zeros
        mse = (squared_norms - 2.0 * cosine).sum(dim=(1, 2)).clamp_min(0.0) * ctx.mse_share

        mean = Z.mean(dim=1, keepdim=True)
        centred = Z - mean
        centred_gram, gram = (X @ X.mT if ctx.wide else X.mT @ X for X in (centred, Z))
        variances = centred.square().sum(dim=1, keepdim=True)
        ctx.cov_share = 1.0 / (features * max(samples - 1, 1) ** 2)
        squares = centred_gram.square().sum(dim=(1, 2)) - variances.square().sum(dim=(1, 2))
        cov = squares.clamp_min(0.0) * ctx.cov_share

        # eigh turns NaN into NaN silently; every entry of Z enters the trace, squared, and every one of F the mse.
        if not torch.isfinite(gram.diagonal(dim1=1, dim2=2).sum(dim=1) + mse).all():
            raise InvalidInputError(
                "Expected finite Z and F, got NaN or inf: the features are broken or training diverged. "
                "Check F, then lower the learning rate or the weights of the terms."
            )
        svd, spread = _leading_share(gram, _LEADING_VALUES[recipe])
        ctx.save_for_backward(
            unit_Z, unit_F, z_inverse, f_inverse, cosine, mean, centred, centred_gram, variances, spread
        )
        return torch.stack([mse, cov, svd]).to(torch.promote_types(ctx.dtypes[0], torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        unit_Z, unit_F, z_inverse, f_inverse, cosine, mean, centred, centred_gram, variances, spread = ctx.saved_tensors
        mse_weight, cov_weight, svd_weight = weights.double()[:, :, None, None]
        pull = 2.0 * ctx.mse_share * mse_weight
        spread, cov_weight = svd_weight * spread, 4.0 * ctx.cov_share * cov_weight
        kernel = torch.addcmul(spread, cov_weight, centred_gram)
        # Z = Z_c + 1·μᵀ: svd acts on Z, cov on Z_c, so one large product serves both.
        if ctx.wide:
            grad_Z = (kernel @ centred).baddbmm_(spread.sum(dim=2, keepdim=True), mean)
        else:
            grad_Z = (centred @ kernel).add_(mean @ spread)
        grad_Z.addcmul_(centred, cov_weight * variances, value=-1)
        # ∂‖f̂ − ẑ‖²/∂z = (2/‖z‖)((ẑ·f̂) ẑ − f̂), and with the roles exchanged for f.
        scale = pull * z_inverse
        grad_Z.addcmul_(unit_Z, scale * cosine).addcmul_(unit_F, scale, value=-1)
        grad_F = None
        if ctx.needs_input_grad[1]:
            grad_F = (pull * f_inverse * (cosine * unit_F - unit_Z)).sum_to_size(unit_F.shape).to(ctx.dtypes[1])
        return grad_Z.to(ctx.dtypes[0]), grad_F, None


def _leading_share(gram: Tensor, leading: int) -> tuple[Tensor, Tensor]:
    """Return svd = −mean(σ₁…σ_k) / Σσ (H,) and the symmetric factor of Z in its gradient."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    size = gram.shape[-1]
    count, precision = min(leading, size), torch.finfo(gram.dtype)
    kept = eigenvalues > (precision.eps * size * eigenvalues[:, -1:]).clamp_min(0.0)
    sigma = torch.where(kept, eigenvalues, 0.0).sqrt()
    inverse = torch.where(kept, sigma.reciprocal(), 0.0)
    total = sigma.sum(dim=1, keepdim=True).clamp_min(precision.tiny)
    share = sigma[:, -count:].mean(dim=1, keepdim=True) / total
    ratio = inverse * (share / total)
    ratio[:, -count:] -= inverse[:, -count:] / (count * total)
    return -share[:, 0], (vectors * ratio[:, None, :]) @ vectors.mT


def _inverse_norms(X: Tensor) -> Tensor:
    """1/norm of each row, (H, M, 1); 0 for a zero row."""
    norms = torch.linalg.vector_norm(X, dim=2, keepdim=True)
    return torch.where(norms == 0, 0.0, norms.reciprocal())
