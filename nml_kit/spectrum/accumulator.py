"""Singular values of rows that arrive in chunks, in any order and from several processes."""

from typing import Any

import numpy as np
import torch
from scipy.linalg.blas import dsyrk

from nml_kit.errors import InvalidInputError, PrecisionLossError
from nml_kit.spectrum.gram import (
    METRIC_TOLERANCE,
    Moments,
    gram_singular_values,
    largest_magnitude,
    scale_exponent,
)
from nml_kit.spectrum.rows import (
    BLOCK_ROWS,
    Center,
    FloatArray,
    centred_entries,
    check_center,
    check_finite,
    matrix_shape,
    real_rows,
)


class SpectrumAccumulator:
    """The singular values of a matrix of `num_features` columns (D) whose rows arrive in chunks.

    Holds up to D rows as they are, then their Gram matrix: at most 8 · D² bytes, whatever the number of rows.
    Accumulators of parts, filled by several processes (they pickle), merge to that of the whole; the same state
    serves all centrings. Raises `InvalidInputError` if `num_features` is below 1.

    >>> import numpy as np
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
        self._rows: list[FloatArray] = []  # all rows as differences from the origin, until there are more than D
        self._origin = np.zeros(num_features)
        self._moments: Moments | None = None

    def update(self, chunk: Any) -> None:
        """Add the rows of `chunk` (n, D): an array or tensor of any real dtype, converted to float64 block by block.

        Raises `InvalidInputError` for another number of columns and for NaN or infinite entries (naming the first
        such row, counted over all rows added so far), and then holds the rows before the block where that row is.
        """
        num_rows, num_features = matrix_shape(chunk)
        self._check_features(num_features)
        for start in range(0, num_rows, BLOCK_ROWS):
            block = real_rows(chunk[start : start + BLOCK_ROWS])
            check_finite(block, np.arange(self.num_samples, self.num_samples + len(block)))
            if self.num_samples == 0:
                # A mean far larger than the spread costs no digits once a row is subtracted, and constant columns
                # become exact zeros.
                self._origin = block[0].astype(np.float64)
            self._add(np.subtract(block, self._origin, dtype=np.float64))

    def merge(self, other: "SpectrumAccumulator") -> None:
        """Add the rows of `other`, which stays as it is. Raises `InvalidInputError` for another number of columns."""
        self._check_features(other.num_features)
        if self.num_samples == 0:
            self._origin = other._origin
        if other._moments is None:
            for rows in list(other._rows):
                self._add(rows + (other._origin - self._origin))
            return
        self._moments = self._moments_of_rows().plus(other._moments)
        self._rows = []
        self.num_samples += other.num_samples

    def singular_values(self, *, center: Center = "none") -> FloatArray:
        """Return the singular values of all rows so far, descending, float64 (min(num_samples, D),).

        `center` and the accuracy are those of `nml_kit.singular_values`. Raises `PrecisionLossError` where more than
        D rows do not allow that accuracy (values below about 1e-7 of the largest): `nml_kit.singular_values`
        then reads them again. Raises `InvalidInputError` for an unknown `center` and before the first row.
        """
        check_center(center)
        if self.num_samples == 0:
            raise InvalidInputError("Expected at least one row, got none so far; call update first.")
        # What centring removes is known to be zero: it is no rounding error to worry about.
        rank = min(self.num_samples - (center == "feature"), self.num_features - (center == "sample"))
        if self._moments is None:
            exponent, found = self._values_of_rows(center, rank)
        else:
            exponent, found = self._values_of_moments(self._moments.centred(center), rank)
        values = np.zeros(min(self.num_samples, self.num_features))
        values[: len(found)] = np.ldexp(found, exponent)
        return values

    def _values_of_moments(self, moments: Moments, rank: int) -> tuple[int, FloatArray]:
        found = gram_singular_values(moments.gram, moments.squares, moments.count, rank)
        if found is None:
            raise PrecisionLossError(
                f"Expected a spectrum whose SVE and LSVR a Gram matrix gives to {METRIC_TOLERANCE:g}, got values of "
                f"{self.num_samples} rows that are lost in rounding. Call singular_values(X), which reads X again."
            )
        return moments.exponent, found

    def _values_of_rows(self, center: Center, rank: int) -> tuple[int, FloatArray]:
        """With no more rows than columns, from their products with each other, or where those fail their SVD."""
        rows = np.concatenate(self._rows)
        if center == "feature":
            rows -= rows.mean(axis=0)
        elif center == "sample":
            rows = centred_entries(rows) + centred_entries(self._origin)
        else:
            rows += self._origin
        exponent = scale_exponent(largest_magnitude(rows))
        rows = np.ldexp(rows, -exponent) if exponent else rows
        gram = dsyrk(1.0, rows.T, trans=1, lower=1)
        found = gram_singular_values(gram, float(np.einsum("ij,ij->", rows, rows)), rows.shape[1], rank)
        if found is None:
            found = torch.linalg.svdvals(torch.from_numpy(rows)).numpy()[:rank]
        return exponent, found

    def _add(self, deviations: FloatArray) -> None:
        self.num_samples += len(deviations)
        if self._moments is None and self.num_samples <= self.num_features:
            self._rows.append(deviations)
            return
        self._moments = self._moments_of_rows().plus_deviations(deviations)
        self._rows = []

    def _moments_of_rows(self) -> Moments:
        if self._moments is not None:
            return self._moments
        moments = Moments.empty(self._origin)
        if self._rows:
            rows = np.concatenate(self._rows)  # a product per block, also after updates of a row each
            for start in range(0, len(rows), BLOCK_ROWS):
                moments = moments.plus_deviations(rows[start : start + BLOCK_ROWS])
        return moments

    def _check_features(self, num_features: int) -> None:
        if num_features != self.num_features:
            raise InvalidInputError(f"Expected rows of {self.num_features} features, got {num_features}.")
