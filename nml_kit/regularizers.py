"""NMTune's three loss terms on a batch of features, exact and cheap, with a gradient that is always finite.

Z are the tuned features and F the frozen ones, both (M, D): M samples in the batch, D features.
"""

from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nml_kit.errors import InvalidInputError, unknown_name

Recipe = Literal["paper", "reference"]

TERM_WEIGHTS = MappingProxyType({"paper": (0.01, 0.01, 0.01), "reference": (1.0, 0.04, 0.001)})
"""Weights of (mse, cov, svd) in the loss L = L_CE + Σ wᵢ·termᵢ, by recipe."""

_LEADING_VALUES = {"paper": 1, "reference": 5}
_NOT_FINITE = (
    "Expected finite Z and F, got NaN or inf: the features are broken or training diverged. "
    "Check F, then lower the learning rate or the weights of the terms."
)


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
    mse, cov, svd = _Terms.apply(Z, F, _LEADING_VALUES[recipe])
    return (mse / Z.shape[1] if recipe == "reference" else mse), cov, svd


class _Terms(torch.autograd.Function):
    """The three terms from one Gram matrix of the smaller side, with the gradient written out.

    Autograd through an SVD, or through √λ, divides by differences of singular values or by zero: duplicated,
    low-rank and collapsed batches give NaN. The terms need neither: they depend on σ only through Σσ and the
    leading values, whose derivative is U diag(h) Vᵀ = U diag(h/σ) Uᵀ Z = Z V diag(h/σ) Vᵀ with h = ∂svd/∂σ.
    """

    @staticmethod
    def forward(ctx: Any, Z: Tensor, F: Tensor, leading: int) -> tuple[Tensor, Tensor, Tensor]:
        Z64, F64 = Z.double(), F.double()
        mean = Z64.mean(dim=0)
        centred = Z64 - mean
        ctx.wide = Z.shape[0] < Z.shape[1]
        gram_centred, gram = (_gram_of_rows if ctx.wide else _gram_of_columns)(centred, mean)
        cov, cov_slope, column_energy = _decorrelation(gram_centred, centred, ctx.wide)
        z_unit, z_norm = _normalise_rows(Z64)
        f_unit, f_norm = _normalise_rows(F64)
        mse = (f_unit - z_unit).square().sum(dim=1).mean()
        # eigh turns NaN into NaN silently; every entry of Z enters the trace, squared, and every one of F the
        # mse.
        if not torch.isfinite(gram.trace() + mse):
            raise InvalidInputError(_NOT_FINITE)
        svd, svd_slope = _leading_share(gram, leading)
        ctx.save_for_backward(centred, mean, cov_slope, column_energy, svd_slope, z_unit, z_norm, f_unit, f_norm)
        ctx.dtypes = Z.dtype, F.dtype
        dtype = torch.promote_types(Z.dtype, torch.float32)
        return mse.to(dtype), cov.to(dtype), svd.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_mse: Tensor, g_cov: Tensor, g_svd: Tensor) -> tuple[Tensor | None, ...]:
        centred, mean, cov_slope, column_energy, svd_slope, z_unit, z_norm, f_unit, f_norm = ctx.saved_tensors
        spread = g_svd.double() * svd_slope
        kernel = spread + g_cov.double() * cov_slope
        # Z = Z_c + 1·μᵀ: the svd part acts on Z, the cov part on Z_c, so one product with Z_c serves both.
        if ctx.wide:
            grad_Z = torch.addmm(torch.outer(spread.sum(dim=1), mean), kernel, centred)
            grad_Z -= centred * (g_cov.double() * column_energy)
        else:
            grad_Z = torch.addmm(mean @ spread, centred, kernel)
        # ∂‖f̂ − ẑ‖²/∂z = (2/‖z‖)((ẑ·f̂) ẑ − f̂), and the same with the roles exchanged for f.
        step = g_mse.double() * (2.0 / len(centred))
        cosine = (z_unit * f_unit).sum(dim=1, keepdim=True)
        grad_Z += (cosine * z_unit - f_unit) * (step * z_norm)
        grad_F = None
        if ctx.needs_input_grad[1]:
            grad_F = ((cosine * f_unit - z_unit) * (step * f_norm)).to(ctx.dtypes[1])
        return grad_Z.to(ctx.dtypes[0]), grad_F, None


def _gram_of_rows(centred: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(M, M) Gram matrices Z_c Z_cᵀ and Z Zᵀ; the second is the first plus rank-one terms of the mean."""
    gram_centred = centred @ centred.T
    along_mean = centred @ mean
    return gram_centred, gram_centred + along_mean[:, None] + along_mean[None, :] + mean @ mean


def _gram_of_columns(centred: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(D, D) Gram matrices Z_cᵀ Z_c and Zᵀ Z; the second is the first plus M·μμᵀ."""
    gram_centred = centred.T @ centred
    return gram_centred, torch.addr(gram_centred, mean, mean, alpha=len(centred))


def _decorrelation(gram_centred: Tensor, centred: Tensor, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return cov, the factor of Z_c in its gradient, and the factor of each column (wide batches only).

    ‖C‖²_F is ‖Z_c Z_cᵀ‖²_F / (M − 1)², so a wide batch never forms the D×D covariance. The gradient is
    4 / (D (M − 1)²) · (Z_c Z_cᵀ Z_c − Z_c diag(q)), q the squared norms of the columns of Z_c.
    """
    M, D = centred.shape
    denominator = D * max(M - 1, 1) ** 2
    if wide:
        column_energy = centred.square().sum(dim=0)
        cov = (gram_centred.square().sum() - column_energy.square().sum()).clamp_min(0.0) / denominator
    else:
        column_energy = gram_centred.new_empty(0)
        gram_centred = gram_centred - torch.diag(gram_centred.diagonal())
        cov = gram_centred.square().sum() / denominator
    return cov, gram_centred * (4.0 / denominator), column_energy * (4.0 / denominator)


def _leading_share(gram: Tensor, leading: int) -> tuple[Tensor, Tensor]:
    """Return svd = −mean(σ₁…σ_k) / Σσ and the symmetric factor of Z in its gradient."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    size = len(eigenvalues)
    smallest = torch.finfo(gram.dtype).eps * size * eigenvalues[-1]
    kept = eigenvalues > smallest.clamp_min(0.0)
    sigma = torch.where(kept, eigenvalues, 0.0).sqrt()
    count = min(leading, size)
    total = sigma.sum().clamp_min(torch.finfo(gram.dtype).tiny)
    share = sigma[-count:].mean() / total
    slope = (share / total).repeat(size)
    slope[-count:] -= 1.0 / (count * total)
    ratio = torch.where(kept, slope / torch.where(kept, sigma, 1.0), 0.0)
    return -share, (vectors * ratio) @ vectors.T


def _normalise_rows(X: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit rows and 1/norm of each row, (M, 1); both are 0 for a zero row."""
    norm = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    inverse = torch.where(norm > 0, 1.0 / norm, 0.0)
    return X * inverse, inverse


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
