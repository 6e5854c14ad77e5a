"""NMTune's three loss terms on a batch of features, exact and cheap, with a gradient that is always finite.

Z are the tuned features and F the frozen ones, both (M, D): M samples in the batch, D features.
"""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.heads.workspace import Workspace

Recipe = Literal["paper", "reference"]

TERM_WEIGHTS = MappingProxyType({"paper": (0.01, 0.01, 0.01), "reference": (1.0, 0.04, 0.001)})
"""Weights of (mse, cov, svd) in the loss L = L_CE + Σ wᵢ·termᵢ, by recipe."""

_LEADING_VALUES = {"paper": 1, "reference": 5}
_NOT_FINITE = (
    "Expected finite Z and F, got NaN or inf: the features are broken or training diverged. "
    "Check F, then lower the learning rate or the weights of the terms."
)


def term_weights(weights: float | Sequence[float] | None, recipe: Recipe) -> tuple[float, float, float]:
    """The weights of (mse, cov, svd): the recipe's for None, one number for each, or three as they are.

    Raises `InvalidInputError` for anything else or a number below 0, and `UnknownNameError` for an unknown recipe.

    >>> term_weights(0.1, "paper")
    (0.1, 0.1, 0.1)
    """
    if recipe not in TERM_WEIGHTS:
        raise unknown_name("recipe", str(recipe), TERM_WEIGHTS)
    if weights is None:
        return TERM_WEIGHTS[recipe]
    given = np.asarray(weights, dtype=np.float64)
    if given.shape not in ((), (3,)) or not np.all(np.isfinite(given) & (given >= 0)):
        raise InvalidInputError(f"Expected weights of None, one number >= 0 or three (mse, cov, svd), got {weights!r}.")
    mse, cov, svd = np.broadcast_to(given, 3).tolist()
    return mse, cov, svd


def nmtune_terms(Z: Tensor, F: Tensor, *, recipe: Recipe = "paper") -> tuple[Tensor, Tensor, Tensor]:
    """Return NMTune's loss terms (mse, cov, svd) of a batch as differentiable scalars.

    Z and F are (M, D), of one floating dtype and device. Chen et al., ICLR 2024, section 4.1:

    - mse = mean over samples of ‖F/‖F‖ − Z/‖Z‖‖² (rows normalised; between 0 and 4)
    - cov = (1/D) Σ_{i≠j} C_ij², C = Z_cᵀ Z_c / (M − 1), Z_c the column-centred Z (0 for M = 1)
    - svd = −σ₁(Z) / Σσ(Z), uncentred (between −1 and 0)

    `recipe="reference"` follows the authors' released code: mse is the mean over samples *and* features (mse
    / D), svd takes the mean of the five largest σ (of all, when there are fewer) in place of σ₁; cov is the
    same.

    All arithmetic is float64, also for float32 and bfloat16 input: a Gram matrix in float32 loses the small
    singular values. The terms come back in the dtype of Z, or float32 if that is narrower; gradients in the
    dtype of their input. Both Z and F receive gradients (once differentiable). Gradients are finite for every
    finite batch: singular values with σ² ≤ ε·min(M, D)·σ₁² count as zero and get the zero subgradient, a zero
    row normalises to a zero row with zero gradient, and an all-zero Z has svd = 0 with zero gradient.

    Raises `InvalidInputError` when Z and F are not both (M, D) floating tensors or hold NaN or inf, and
    `UnknownNameError` for an unknown recipe.

    >>> F = torch.eye(2)
    >>> Z = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> mse, cov, svd = nmtune_terms(Z, F)
    >>> mse.item(), cov.item(), round(svd.item(), 6)
    (0.0, 4.0, -0.5)
    """
    _validate(Z, F, recipe)
    mse, cov, svd = _Terms.apply(Z, F, recipe)
    return mse, cov, svd


class _Terms(torch.autograd.Function):
    """The three terms of one batch, whose gradient is written out in `TermsOfHeads`."""

    @staticmethod
    def forward(ctx: Any, Z: Tensor, F: Tensor, recipe: Recipe) -> tuple[Tensor, ...]:
        ctx.terms = TermsOfHeads(Z[None], F[None], recipe, Workspace())
        ctx.dtypes = Z.dtype, F.dtype
        return ctx.terms.values[:, 0].to(torch.promote_types(Z.dtype, torch.float32)).unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        stacked = torch.stack(weights).double()[:, None]
        grad_Z = ctx.terms.z_gradient(stacked)[0].to(ctx.dtypes[0])
        grad_F = ctx.terms.f_gradient(stacked)[0].to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return grad_Z, grad_F, None


class TermsOfHeads:
    """The terms of H heads at once, Z (H, M, D) with F (H or 1, M, D), and their gradient without autograd.

    `values` is float64 (3, H): mse, cov, svd as in `nmtune_terms`, with the same promises and errors. Autograd through
    an SVD, or through √λ, divides by differences of singular values or by zero: duplicated, low-rank and collapsed
    batches give NaN. The terms need neither: they depend on σ only through Σσ and the leading values, whose derivative
    is U diag(h) Vᵀ = U diag(h/σ) Uᵀ Z = Z V diag(h/σ) Vᵀ with h = ∂svd/∂σ. One Gram matrix of the smaller side serves
    cov and svd. An object lives in its `workspace` until the next one takes that.
    """

    def __init__(self, Z: Tensor, F: Tensor, recipe: Recipe, workspace: Workspace) -> None:
        self._space = workspace
        self._Z, self._F = (
            workspace.tensor("Z", Z.shape, Z, torch.float64).copy_(Z),
            workspace.tensor("F", F.shape, F, torch.float64).copy_(F),
        )
        self._mean = self._Z.mean(dim=1, keepdim=True)
        self._centred = torch.sub(self._Z, self._mean, out=workspace.tensor("centred", Z.shape, self._Z))
        self._wide = Z.shape[1] < Z.shape[2]
        gram_centred, gram = (_gram_of_rows if self._wide else _gram_of_columns)(self._centred, self._mean)
        self._covariance = _without_diagonal(gram_centred, self._centred, self._wide)
        cov, self._cov_slope = _decorrelation(*self._covariance, *Z.shape[1:])
        # The reference recipe averages over features too.
        self._mse_share = 1.0 / (Z.shape[1] * (Z.shape[2] if recipe == "reference" else 1))
        mse = self._squared_distance() * self._mse_share
        # eigh turns NaN into NaN silently; every entry of Z enters the trace, squared, and every one of F the mse.
        if not torch.isfinite(gram.diagonal(dim1=1, dim2=2).sum(dim=1) + mse).all():
            raise InvalidInputError(_NOT_FINITE)
        svd, self._svd_slope = _leading_share(gram, _LEADING_VALUES[recipe])
        self.values = torch.stack([mse, cov, svd])

    def _squared_distance(self) -> Tensor:
        """Σ over samples of ‖f̂ − ẑ‖² (H,), and what its gradient needs: the inverse norms and the cosine of each."""
        self._z_inverse, self._f_inverse = _inverse_norms(self._Z), _inverse_norms(self._F)
        difference = torch.mul(self._Z, self._z_inverse, out=self._space.tensor("scratch", self._Z.shape, self._Z))
        difference.addcmul_(self._F, self._f_inverse, value=-1)
        product = torch.mul(self._Z, self._F, out=self._space.tensor("product", self._Z.shape, self._Z))
        self._cosine = product.sum(dim=2, keepdim=True) * (self._z_inverse * self._f_inverse)
        return difference.square_().sum(dim=(1, 2))

    def z_gradient(self, weights: Tensor) -> Tensor:
        """Gradient of Σ weights · terms with respect to Z, float64 (H, M, D); weights are float64 (3, H)."""
        mse_weight, cov_weight, svd_weight = weights[:, :, None, None]
        spread = svd_weight * self._svd_slope
        cov_weight = cov_weight * self._cov_slope
        products, diagonal = self._covariance
        kernel = torch.addcmul(spread, cov_weight, products)
        gradient = self._space.tensor("scratch", self._Z.shape, self._Z)
        # Z = Z_c + 1·μᵀ: the svd part acts on Z, the cov part on Z_c, so one product with Z_c serves both.
        if self._wide:
            torch.bmm(kernel, self._centred, out=gradient)
            gradient.baddbmm_(spread.sum(dim=2, keepdim=True), self._mean)
            gradient.addcmul_(self._centred, cov_weight * diagonal, value=-1)
        else:
            torch.bmm(self._centred, kernel, out=gradient)
            gradient += self._mean @ spread
        return self._add_pull(gradient, mse_weight, self._Z, self._z_inverse, self._F, self._f_inverse)

    def f_gradient(self, weights: Tensor) -> Tensor:
        """Gradient with respect to F, float64 (H, M, D): only mse depends on it."""
        gradient = torch.zeros_like(self._Z)
        return self._add_pull(gradient, weights[0, :, None, None], self._F, self._f_inverse, self._Z, self._z_inverse)

    def _add_pull(
        self, gradient: Tensor, weight: Tensor, own: Tensor, own_inverse: Tensor, other: Tensor, other_inverse: Tensor
    ) -> Tensor:
        """Add ∂‖f̂ − ẑ‖²/∂z = (2/‖z‖)((ẑ·f̂) ẑ − f̂), or the same with the roles exchanged for f."""
        scale = weight * (2.0 * self._mse_share) * own_inverse
        gradient.addcmul_(own, scale * self._cosine * own_inverse)
        return gradient.addcmul_(other, scale * other_inverse, value=-1)


def _gram_of_rows(centred: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(H, M, M) Gram matrices Z_c Z_cᵀ and Z Zᵀ; the second is the first plus rank-one terms of the mean."""
    gram_centred = torch.bmm(centred, centred.mT)
    half_shift = torch.baddbmm(0.5 * mean.square().sum(dim=2, keepdim=True), centred, mean.mT)
    return gram_centred, gram_centred + half_shift + half_shift.mT


def _gram_of_columns(centred: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(H, D, D) Gram matrices Z_cᵀ Z_c and Zᵀ Z; the second is the first plus M·μμᵀ."""
    gram_centred = torch.bmm(centred.mT, centred)
    return gram_centred, torch.baddbmm(gram_centred, mean.mT, mean, alpha=centred.shape[1])


def _without_diagonal(gram_centred: Tensor, centred: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """The Gram matrix whose ‖·‖²_F is that of (M − 1) C, and what of it is C's diagonal, as a row (H, 1, D) if wide.

    ‖Z_cᵀ Z_c‖_F is ‖Z_c Z_cᵀ‖_F, so a wide batch never forms the D×D covariance; the diagonal, the squared norms of the
    columns of Z_c, is subtracted from the sum of squares. Otherwise it is taken out of the matrix.
    """
    if wide:
        return gram_centred, torch.linalg.vector_norm(centred, dim=1, keepdim=True).square_()
    gram_centred = gram_centred.clone()
    gram_centred.diagonal(dim1=1, dim2=2).zero_()
    return gram_centred, gram_centred.new_zeros(1, 1, 1)


def _decorrelation(products: Tensor, diagonal: Tensor, num_samples: int, num_features: int) -> tuple[Tensor, float]:
    """Return cov (H,), and the factor of Z_c Z_cᵀ Z_c − Z_c diag(q) that is its gradient, 4 / (D (M − 1)²)."""
    denominator = num_features * max(num_samples - 1, 1) ** 2
    squares = products.square().sum(dim=(1, 2)) - diagonal.square().sum(dim=(1, 2))
    return squares.clamp_min_(0.0) / denominator, 4.0 / denominator


def _leading_share(gram: Tensor, leading: int) -> tuple[Tensor, Tensor]:
    """Return svd = −mean(σ₁…σ_k) / Σσ (H,) and the symmetric factor of Z in its gradient."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    size = gram.shape[-1]
    count = min(leading, size)
    smallest = (torch.finfo(gram.dtype).eps * size) * eigenvalues[:, -1:]
    kept = eigenvalues > smallest.clamp_min_(0.0)
    sigma = torch.where(kept, eigenvalues, 0.0).sqrt_()
    total = sigma.sum(dim=1, keepdim=True).clamp_min_(torch.finfo(gram.dtype).tiny)
    share = sigma[:, -count:].mean(dim=1, keepdim=True) / total
    slope = (share / total).repeat(1, size)
    slope[:, -count:] -= 1.0 / (count * total)
    ratio = torch.where(kept, slope / torch.where(kept, sigma, 1.0), 0.0)
    return -share[:, 0], (vectors * ratio[:, None, :]) @ vectors.mT


def _inverse_norms(X: Tensor) -> Tensor:
    """1/norm of each row, (H, M, 1); 0 for a zero row."""
    norm = torch.linalg.vector_norm(X, dim=2, keepdim=True)
    return norm.reciprocal_().nan_to_num_(nan=math.nan, posinf=0.0)


def _validate(Z: Tensor, F: Tensor, recipe: str) -> None:
    if recipe not in TERM_WEIGHTS:
        raise unknown_name("recipe", recipe, TERM_WEIGHTS)
    for name, tensor in (("Z", Z), ("F", F)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InvalidInputError(f"Expected {name} to be a floating-point torch tensor, got {found}.")
    if Z.ndim != 2 or Z.shape != F.shape or 0 in Z.shape:
        raise InvalidInputError(
            f"Expected Z and F of one shape (samples, features), at least 1 × 1; "
            f"got Z {tuple(Z.shape)} and F {tuple(F.shape)}."
        )
