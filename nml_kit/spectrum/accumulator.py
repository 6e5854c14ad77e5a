"""Singular values of rows that arrive in chunks, in any order and from several processes: their Gram matrix in float64.

N samples, D features, ε = 2⁻⁵². A Gram matrix squares the singular values: its eigenvalue λ_i = σ_i² is known to
an error δ that does not shrink with λ_i, so a σ_i is known to δ / σ_i, or to √δ where λ_i < δ. Hence values come
with a bound on what that does to the metrics, and none come when it does too much.
"""

import math
from typing import Any

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from scipy.linalg.blas import dsymv, dsyr, dsyr2, dsyrk

from nml_kit.errors import InvalidInputError, PrecisionLossError
from nml_kit.spectrum.rows import (
    BLOCK_ROWS,
    Center,
    FloatArray,
    centred_entries,
    check_center,
    check_finite,
    largest_magnitude,
    matrix_shape,
    real_rows,
)

METRIC_TOLERANCE = 1e-6  # relative error of SVE and LSVR

_SAFE_MAGNITUDES = (1e-100, 1e120)  # their squares neither underflow nor overflow, in sums neither
# A value whose eigenvalue is below 10 δ is noise: the metrics that take logarithms of it (α) would fit that.
_SMALLEST_RESOLVED = 10.0
# δ in units of ε · (sum of all squares that were added): sums of N terms round like a random walk, √N · ε/2 (Higham &
# Mary, SIAM J. Sci. Comput. 2019). Seen with blocks of 512 rows, N up to 10⁶, also with many equal terms: at most 18.
_LEAST_ROUNDING = 16.0
_ROUNDING_PER_ROOT_SAMPLE = 0.5


class SpectrumAccumulator:
    """The singular values of a matrix of `num_features` columns (D) whose rows arrive in chunks.

    Holds up to D rows as they are, then their Gram matrix: at most 8 · D² bytes, whatever the number of rows.
    Accumulators of parts, filled by several processes (they pickle), merge to that of all rows; the same state
    serves all centrings. Raises InvalidInputError if `num_features` is below 1.

    >>> X = np.random.default_rng(0).standard_normal((100, 3))
    >>> first, second = SpectrumAccumulator(3), SpectrumAccumulator(3)
    >>> first.update(X[:60]); second.update(X[60:]); first.merge(second)
    >>> first.num_samples, bool(np.allclose(first.singular_values(), np.linalg.svd(X, compute_uv=False)))
    (100, True)
    """

    def __init__(self, num_features: int) -> None:
        if num_features < 1:
            raise InvalidInputError(f"Expected num_features of at least 1, got {num_features}.")
        self.num_features = num_features
        self.num_samples = 0
        # Rows are held as differences from the origin, the first row: a mean far larger than the spread then costs no
        # digits, and constant columns become exact zeros.
        self._origin = np.zeros(num_features)
        self._rows: list[FloatArray] = []  # all rows, until there are more than D
        self._gram: FloatArray | None = None  # Σxxᵀ (D, D) of all rows x: lower triangle, Fortran order
        self._sums = np.zeros(num_features)
        self._squares = 0.0  # the sum of all squares that went in: what rounding errors are proportional to

    def update(self, chunk: Any) -> None:
        """Add the rows of `chunk` (n, D): an array or tensor of any real dtype, converted to float64 block by block.

        Raises InvalidInputError for another number of columns and for NaN or infinite entries (naming the first
        such row, counted over all rows added so far), and then holds the rows before the block where that row is.
        """
        num_rows, num_features = matrix_shape(chunk)
        self._check_features(num_features)
        for start in range(0, num_rows, BLOCK_ROWS):
            block = real_rows(chunk[start : start + BLOCK_ROWS])
            check_finite(block, np.arange(self.num_samples, self.num_samples + len(block)))
            if self.num_samples == 0:
                self._origin = block[0].astype(np.float64)
            self._add(np.subtract(block, self._origin, dtype=np.float64))

    def merge(self, other: "SpectrumAccumulator") -> None:
        """Add the rows of `other`, which stays as it is. Raises InvalidInputError for another number of columns."""
        self._check_features(other.num_features)
        if self.num_samples == 0:
            self._origin = other._origin
        offset = other._origin - self._origin
        if other._gram is None:
            for rows in list(other._rows):
                self._add(rows + offset)
            return
        gram = self._gram_of_rows()
        gram += _shifted(other._gram.copy(order="F"), other._sums, other.num_samples, offset)
        self._sums = self._sums + other._sums + other.num_samples * offset
        self._squares += other._squares + other.num_samples * float(offset @ offset)
        self.num_samples += other.num_samples

    def singular_values(self, *, center: Center = "none") -> Float[np.ndarray, " r"]:
        """Return the singular values of all rows so far, descending, float64 (min(num_samples, D),).

        `center` and the accuracy are those of `nml_kit.singular_values`. Raises PrecisionLossError where more than
        D rows do not allow that accuracy (values below about 1e-7 of the largest, or squares out of range):
        `nml_kit.singular_values` then reads them again. Raises InvalidInputError for an unknown `center` and before
        the first row.
        """
        check_center(center)
        if self.num_samples == 0:
            raise InvalidInputError("Expected at least one row, got none so far; call update first.")
        # What centring removes is known to be zero: it is no rounding error to worry about.
        rank = min(self.num_samples - (center == "feature"), self.num_features - (center == "sample"))
        resolved = self._values_of_rows(center, rank) if self._gram is None else self._values_of_gram(center, rank)
        return np.append(resolved, np.zeros(min(self.num_samples, self.num_features) - len(resolved)))

    def _values_of_rows(self, center: Center, rank: int) -> FloatArray:
        """With no more rows than columns, from their products with each other, or where those fail their SVD."""
        rows = np.concatenate(self._rows)
        if center == "feature":
            rows -= rows.mean(axis=0)
        elif center == "sample":
            rows = centred_entries(rows) + centred_entries(self._origin)
        else:
            rows += self._origin
        squares = float(np.einsum("ij,ij->", rows, rows)) if _is_safe(rows) else math.inf
        try:
            return _root_eigenvalues(dsyrk(1.0, rows.T, trans=1, lower=1), squares, rows.shape[1], rank)
        except PrecisionLossError:
            svd: FloatArray = torch.linalg.svdvals(torch.from_numpy(rows)).numpy()
            return svd[:rank]

    def _values_of_gram(self, center: Center, rank: int) -> FloatArray:
        if not _is_safe(self._origin):
            self._squares = math.inf
        gram, squares = self._centred_gram(center)
        kept = gram.diagonal() != 0  # zero columns add zeros alone
        gram = gram if kept.all() else np.asfortranarray(gram[np.ix_(kept, kept)])
        return _root_eigenvalues(gram, squares, self.num_samples, rank)

    def _centred_gram(self, center: Center) -> tuple[FloatArray, float]:
        """The Gram matrix of the centred matrix, and the sum of the squares that it came from."""
        count, sums, origin, gram = self.num_samples, self._sums, self._origin, self._gram_of_rows().copy(order="F")
        if center == "feature":
            return dsyr(-1.0 / count, sums, a=gram, lower=1, overwrite_a=1), self._squares
        if center == "sample":
            # P G P with P = I − 11ᵀ/D is G − h 1ᵀ − 1 hᵀ  with h = G1/D − (1ᵀG1 / 2D²) 1.
            ones = np.ones(self.num_features)
            means = dsymv(1.0 / len(ones), gram, ones, lower=1)
            gram = dsyr2(-1.0, means - 0.5 * means.mean(), ones, a=gram, lower=1, overwrite_a=1)
            sums, origin = centred_entries(sums), centred_entries(origin)
        with np.errstate(over="ignore"):
            return _shifted(gram, sums, count, origin), self._squares + count * float(origin @ origin)

    def _add(self, deviations: FloatArray) -> None:
        self.num_samples += len(deviations)
        if self._gram is None and self.num_samples <= self.num_features:
            self._rows.append(deviations)
        else:
            self._gram_of_rows()
            self._add_products(deviations)

    def _gram_of_rows(self) -> FloatArray:
        """The Gram matrix; from now on it stands for the rows that were held so far."""
        if self._gram is None:
            self._gram = np.zeros((self.num_features,) * 2, order="F")
            held, self._rows = np.concatenate([np.empty((0, self.num_features)), *self._rows]), []
            for start in range(0, len(held), BLOCK_ROWS):  # a product per block, also after updates of a row each
                self._add_products(held[start : start + BLOCK_ROWS])
        return self._gram

    def _add_products(self, rows: FloatArray) -> None:
        if not _is_safe(rows):
            self._squares = math.inf
        if math.isfinite(self._squares):
            # Rows in C order are columns in Fortran order: the update reads and writes in place.
            self._gram = dsyrk(1.0, rows.T, beta=1.0, c=self._gram, lower=1, overwrite_c=1)
            self._squares += float(np.einsum("ij,ij->", rows, rows))
            self._sums = self._sums + rows.sum(axis=0)

    def _check_features(self, num_features: int) -> None:
        if num_features != self.num_features:
            raise InvalidInputError(f"Expected rows of {self.num_features} features, got {num_features}.")


def _is_safe(rows: FloatArray) -> bool:
    """Whether squares and their sums neither overflow nor underflow."""
    largest = largest_magnitude(rows)
    return largest == 0 or _SAFE_MAGNITUDES[0] <= largest <= _SAFE_MAGNITUDES[1]


def _shifted(gram: FloatArray, sums: FloatArray, count: int, offset: FloatArray) -> FloatArray:
    """Σ(x + d)(x + d)ᵀ = Σxxᵀ + (s + n/2 · d) dᵀ + d (s + n/2 · d)ᵀ with s = Σx, in place of `gram`."""
    return dsyr2(1.0, sums + 0.5 * count * offset, offset, a=gram, lower=1, overwrite_a=1)


def _root_eigenvalues(gram: FloatArray, squares: float, num_terms: int, rank: int) -> FloatArray:
    """The `rank` largest singular values, descending; PrecisionLossError if metrics could be off by METRIC_TOLERANCE.

    `gram` (n, n) is overwritten; its entries are sums of `num_terms` products.
    """
    lost = PrecisionLossError(
        f"Expected a spectrum whose SVE and LSVR a Gram matrix gives to {METRIC_TOLERANCE:g}, got values of "
        f"{num_terms} rows that are lost in rounding. Call singular_values(X), which reads X again."
    )
    if not math.isfinite(squares):
        raise lost
    rank = min(rank, len(gram))
    if rank == 0 or squares == 0:
        return np.zeros(0)
    eigenvalues = scipy.linalg.eigh(gram, eigvals_only=True, overwrite_a=True, check_finite=False, driver="evd")
    eigenvalues = eigenvalues[::-1][:rank]
    rounding = max(_LEAST_ROUNDING, _ROUNDING_PER_ROOT_SAMPLE * math.sqrt(num_terms))
    error = rounding * float(np.finfo(np.float64).eps) * squares
    if eigenvalues[-1] < _SMALLEST_RESOLVED * error or _metric_error(eigenvalues, error) > METRIC_TOLERANCE:
        raise lost
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
