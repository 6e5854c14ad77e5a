"""Second moments of rows, and singular values from the Gram matrices that they give.

N samples, D features, ε = 2⁻⁵². A Gram matrix squares the singular values: its eigenvalue λ_i = σ_i² is known to
an error δ that does not shrink with λ_i, so a σ_i is known to δ / σ_i, or to √δ where λ_i < δ. Hence values come
with a bound on what that does to the metrics, and none come when it does too much.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg.blas import dsymv, dsyr, dsyr2, dsyrk

from nml_kit.spectrum.rows import Center, FloatArray, centred_entries

METRIC_TOLERANCE = 1e-6  # relative error of SVE and LSVR
# A value whose eigenvalue is below 10 δ is noise: the metrics that take logarithms of it (α) would fit that.
_SMALLEST_RESOLVED = 10.0
# δ in units of ε · (sum of all squares that were added): sums of N terms round like a random walk, √N · ε/2 (Higham &
# Mary, SIAM J. Sci. Comput. 2019). Seen with blocks of 512 rows, N up to 10⁶, also with many equal terms: at most 18.
_LEAST_ROUNDING = 16.0
_ROUNDING_PER_ROOT_SAMPLE = 0.5


@dataclass(frozen=True, eq=False)
class Moments:
    """Σ(x − s)(x − s)ᵀ as `gram` (D, D; lower triangle, Fortran order) and Σ(x − s) as `sums` (D,) of `count` rows x.

    `origin` is s (D,). `gram` is in units of 4^exponent and `sums` of 2^exponent, so that nothing over- or underflows.
    `squares` is the sum of all squares that went in (units of gram): what its rounding errors are proportional to.
    """

    count: int
    origin: FloatArray
    exponent: int
    gram: FloatArray
    sums: FloatArray
    squares: float

    @classmethod
    def empty(cls, origin: FloatArray) -> "Moments":
        size = len(origin)
        return cls(0, origin, scale_exponent(0.0), np.zeros((size, size), order="F"), np.zeros(size), 0.0)

    def plus_deviations(self, deviations: FloatArray) -> "Moments":
        """With the rows whose differences from the origin are `deviations` (n, D); takes the gram of self."""
        exponent = max(self.exponent, scale_exponent(largest_magnitude(deviations)))
        grown = self.in_units_of(exponent)
        rows = deviations if exponent == 0 else np.ldexp(deviations, -exponent)
        # Rows in C order are columns in Fortran order: the update reads and writes in place.
        gram = dsyrk(1.0, rows.T, beta=1.0, c=grown.gram, lower=1, overwrite_c=1)
        squares = grown.squares + float(np.einsum("ij,ij->", rows, rows))
        return replace(grown, count=self.count + len(rows), gram=gram, sums=grown.sums + rows.sum(0), squares=squares)

    def plus(self, other: "Moments") -> "Moments":
        """With the rows of other as well; takes the gram of self."""
        moved = other.about(self.origin)
        exponent = max(self.exponent, moved.exponent)
        one, two = self.in_units_of(exponent), moved.in_units_of(exponent)
        gram = np.add(one.gram, two.gram, out=one.gram)
        return replace(one, count=self.count + other.count, gram=gram, sums=one.sums + two.sums,
                       squares=one.squares + two.squares)  # fmt: skip

    def about(self, origin: FloatArray) -> "Moments":
        """The moments of the same rows about another origin, in memory of their own."""
        offset = self.origin - origin
        exponent = max(self.exponent, scale_exponent(largest_magnitude(offset)))
        moved = self.copy().in_units_of(exponent)
        offset = np.ldexp(offset, -exponent)
        # Σ(y + d)(y + d)ᵀ = Σyyᵀ + (t + n/2 · d) dᵀ + d (t + n/2 · d)ᵀ  with t = Σy.
        gram = dsyr2(1.0, moved.sums + 0.5 * self.count * offset, offset, a=moved.gram, lower=1, overwrite_a=1)
        squares = moved.squares + self.count * float(offset @ offset)
        return replace(moved, origin=origin, gram=gram, sums=moved.sums + self.count * offset, squares=squares)

    def of_centred_rows(self) -> "Moments":
        """The moments of P x for each row x, where P = I − 11ᵀ/D subtracts the mean of its entries."""
        ones = np.ones(len(self.origin))
        means = dsymv(1.0 / len(ones), self.gram, ones, lower=1)
        # P G P = G − h 1ᵀ − 1 hᵀ  with h = G1/D − (1ᵀG1 / 2D²) 1.
        gram = dsyr2(-1.0, means - 0.5 * means.mean(), ones, a=self.gram.copy(order="F"), lower=1, overwrite_a=1)
        return replace(self, origin=centred_entries(self.origin), gram=gram, sums=centred_entries(self.sums))

    def of_columns(self, kept: NDArray[np.bool_]) -> "Moments":
        """The moments of some columns (of all where none would be left)."""
        if kept.all() or not kept.any():
            return self
        gram = np.asfortranarray(self.gram[np.ix_(kept, kept)])
        return replace(self, origin=self.origin[kept], gram=gram, sums=self.sums[kept])

    def centred(self, center: Center) -> "Moments":
        """The moments whose gram is that of the centred matrix less its zero columns, in memory of their own."""
        varying = self.gram.diagonal() > 0
        if center == "feature":
            moments = self.of_columns(varying).copy()
            return replace(moments, gram=dsyr(-1.0 / self.count, moments.sums, a=moments.gram, lower=1, overwrite_a=1))
        moments = self.of_centred_rows() if center == "sample" else self.of_columns(varying | (self.origin != 0))
        return moments.about(np.zeros_like(moments.origin))

    def in_units_of(self, exponent: int) -> "Moments":
        change = self.exponent - exponent
        if change == 0:
            return self
        return replace(self, exponent=exponent, gram=np.ldexp(self.gram, 2 * change),
                       sums=np.ldexp(self.sums, change), squares=float(np.ldexp(self.squares, 2 * change)))  # fmt: skip

    def copy(self) -> "Moments":
        return replace(self, gram=self.gram.copy(order="F"), sums=self.sums.copy())


def gram_singular_values(gram: FloatArray, squares: float, num_terms: int, rank: int) -> FloatArray | None:
    """The `rank` largest singular values, descending, or None if the metrics' error could exceed METRIC_TOLERANCE.

    `gram` is (n, n), Fortran order, its lower triangle is read and all of it overwritten; its entries are sums
    of `num_terms` products, and `squares` bounds their rounding errors as in `Moments`.
    """
    rank = min(rank, len(gram))
    if rank == 0 or squares == 0:
        return np.zeros(0)
    eigenvalues = scipy.linalg.eigh(gram, eigvals_only=True, overwrite_a=True, check_finite=False, driver="evd")
    eigenvalues = eigenvalues[::-1][:rank]
    rounding = max(_LEAST_ROUNDING, _ROUNDING_PER_ROOT_SAMPLE * math.sqrt(num_terms))
    error = rounding * float(np.finfo(np.float64).eps) * squares
    if eigenvalues[-1] < _SMALLEST_RESOLVED * error or _metric_error(eigenvalues, error) > METRIC_TOLERANCE:
        return None
    return np.sqrt(eigenvalues)


def _metric_error(eigenvalues: FloatArray, error: float) -> float:
    """Bound the relative error of SVE and LSVR when each eigenvalue is wrong by up to `error`, below each of them."""
    if len(eigenvalues) == 1:
        return 0.0  # both metrics are 0 whatever the value
    values = np.sqrt(eigenvalues)
    total = values.sum()
    shares = values / total
    share_errors = error / (values * total)  # |√(λ ± δ) − √λ| ≤ δ / √λ for δ ≤ λ
    logs = -np.log(shares)
    entropy = float(shares @ logs)
    # H = ln Σσ − Σ σ ln σ / Σσ has the derivative (−ln p_i − H) / Σσ; the 1 is the curvature for δ ≤ λ / 2.
    entropy_error = float(share_errors @ (1.0 + logs + entropy))
    ratio_error = float(share_errors.sum() + share_errors[0] / shares[0])
    return max(entropy_error / entropy, ratio_error / float(logs[0]))


def largest_magnitude(values: NDArray[Any]) -> float:
    return max(float(values.max()), -float(values.min()))


def scale_exponent(magnitude: float) -> int:
    """The exponent of 2 to divide by so that squares neither overflow nor underflow; 0 for 1e-38 to 1e38."""
    if magnitude == 0.0:
        return -4096  # below that of any number: zeros fit every scale
    return 256 * round(float(np.frexp(magnitude)[1]) / 256)
