"""Singular values of a feature matrix, of groups of its rows, and of overlapping subsets of them.

The Gram matrix comes first; where it would lose precision, the rows are read again for a QR decomposition.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dtpqrt

from nml_kit.errors import InvalidInputError, PrecisionLossError
from nml_kit.spectrum.accumulator import SpectrumAccumulator
from nml_kit.spectrum.rows import (
    BLOCK_ROWS,
    Center,
    FloatArray,
    centred_entries,
    check_center,
    matrix_shape,
    real_rows,
    row_slices,
)

_PANEL_COLUMNS = 128  # how many columns LAPACK reduces at once: the fastest of 32, 64 and 128 at D = 2,048


def singular_values(X: Any, *, center: Center = "none", chunk_size: int | None = None) -> Float[np.ndarray, " r"]:
    """Return the singular values of a feature matrix, descending, in one or two passes over its rows.

    X is (N, D): an array, a tensor on any device, a memory-map, or anything with `.shape` and row slices, of any real
    dtype; it is read in chunks of `chunk_size` rows (default: 512), so memory is O(chunk_size · D + D²) at any N.
    `center` subtracts nothing ("none"), the mean of each column ("feature") or of each row ("sample"). The result is
    float64 (min(N, D),), in the units of X. A constant matrix gives one non-zero value, or none once centred.

    SVE and LSVR agree with those of `numpy.linalg.svd` of the float64 matrix to a relative 1e-6, each value to 5 % of
    itself and 1e-7 · σ₁. One pass accumulates the Gram matrix (`SpectrumAccumulator`), whose eigenvalues come with an
    error bound; where the bound exceeds that (values below about 1e-7 · σ₁, as of a deficient rank), a second pass
    by QR gives each value to about 1e-14 · σ₁, some three times slower. Raises InvalidInputError for NaN or infinite
    entries (naming the first such row), an X that is not a real matrix, an unknown `center` or a `chunk_size` below 1.

    >>> singular_values(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    array([4., 3.])
    >>> singular_values(np.full((5, 3), 7.0), center="feature")
    array([0., 0., 0.])
    """
    matrix_shape(X)
    check_center(center)
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"Expected chunk_size of at least 1 row, got {chunk_size}.")
    return _values_by_center(X, (center,), size=chunk_size or BLOCK_ROWS)[center]


def grouped_singular_values(X: Any, groups: ArrayLike, *, center: Center = "none") -> dict[Any, FloatArray]:
    """Return the singular values of the rows of each group (class, domain, split), by group value in ascending order.

    X is (N, D) as for `singular_values` and also takes an array of row numbers, as arrays, tensors and memory-maps do;
    `groups` is (N,), numbers or texts. The values of a group are those of `singular_values` of its rows, and so are
    time and memory. Raises InvalidInputError as it does, and for another number of groups than rows or a missing group.

    >>> grouped_singular_values(np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]), ["a", "b", "b"])
    {'a': array([5.]), 'b': array([2., 1.])}
    """
    num_samples, _ = matrix_shape(X)
    check_center(center)
    values = np.asarray(groups)
    if values.shape != (num_samples,):
        raise InvalidInputError(f"Expected one group per row, shape ({num_samples},), got shape {values.shape}.")
    missing = np.flatnonzero([value is None or value != value for value in values.tolist()])
    if missing.size:
        raise InvalidInputError(f"Expected a group for every row, got none for row {missing[0]}. Drop or name it.")
    try:
        names = np.unique(values)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in values.tolist()})
        raise InvalidInputError(f"Expected groups of one kind, got {' and '.join(kinds)}. Convert them.") from None
    return {name: _values_by_center(X, (center,), values == name)[center] for name in names.tolist()}


def spectra_of_subsets(
    X: Any, subsets: Mapping[str, Any], *, centers: Iterable[Center] = ("none",)
) -> dict[tuple[str, Center], FloatArray]:
    """Return the singular values of subsets of the rows of X in every centring, by (subset, centring).

    X is as for `grouped_singular_values`. `subsets` has for each name the rows that belong to it, bool (N,); they may
    overlap ("all", "train", a domain). The values are those of `singular_values` of these rows. Each row is read once
    for each subset that it is in, whatever the number of centrings; only where a Gram matrix would lose precision are
    the rows of that subset read again, once for each such centring. Raises InvalidInputError as `singular_values` does
    (for rows that are in some subset), and for a mask that is not bool (N,) or has no row.

    >>> X = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    >>> spectra_of_subsets(X, {"first": [True, False, False], "others": [False, True, True]})
    {('first', 'none'): array([5.]), ('others', 'none'): array([2., 1.])}
    """
    num_samples, _ = matrix_shape(X)
    centers = tuple(centers)
    for center in centers:
        check_center(center)
    masks = {name: _checked_mask(name, mask, num_samples) for name, mask in subsets.items()}
    spectra: dict[tuple[str, Center], FloatArray] = {}
    for name, mask in masks.items():
        values = _values_by_center(X, centers, mask)
        spectra |= {(name, center): values[center] for center in centers}
    return spectra


def _values_by_center(
    X: Any, centers: tuple[Center, ...], mask: NDArray[np.bool_] | None = None, size: int = BLOCK_ROWS
) -> dict[Center, FloatArray]:
    """The singular values of the rows of a mask (None: of all), read in slices of `size`."""
    chosen = None if mask is None else np.flatnonzero(mask)
    accumulator, values = SpectrumAccumulator(X.shape[1]), {}
    for chunk in row_slices(X, size, chosen):
        accumulator.update(chunk)
    for center in centers:
        try:
            values[center] = accumulator.singular_values(center=center)
        except PrecisionLossError:
            values[center] = _qr_singular_values(row_slices(X, BLOCK_ROWS, chosen), X.shape[1], center)
    return values


def _qr_singular_values(blocks: Iterable[Any], num_features: int, center: Center) -> FloatArray:
    """The singular values of X (N, D) in blocks, descending, float64 (min(N, D),), to about 1e-14 · σ₁, in one pass."""
    # Sequential QR (TSQR; Demmel et al. 2012) of [1 | Y], where Y = X − 1·sᵀ and s is the first row of X:
    #     [1 | Y] = [q₁ | Q₂] R,   R = [ρ  rᵀ; 0  S],   q₁ = ±1/√N.
    # Centred: Y = q₁ rᵀ + Q₂ S with Q₂ orthogonal to the ones, so X minus its column means is Q₂ S, with
    # the singular values of S. Not centred: X = Y + 1·sᵀ = q₁ (r + ρ s)ᵀ + Q₂ S, so adding ρ s to the
    # first row gives those of X. One pass is exact for both. Nothing is squared, and a mean far larger than
    # the spread (it is in s) never enters the QR.
    num_samples, shift = 0, None
    factor = np.zeros((num_features + 1, num_features + 1), order="F")
    for block in blocks:  # finite: they have been read before
        rows = real_rows(block).astype(np.float64)
        if center == "sample":
            rows = centred_entries(rows)
        shift = rows[0].copy() if shift is None else shift
        num_samples += len(rows)
        augmented = np.ones((len(rows), num_features + 1), order="F")
        np.subtract(rows, shift, out=augmented[:, 1:])
        panel = min(_PANEL_COLUMNS, num_features + 1)
        factor, *_ = dtpqrt(0, panel, factor, augmented, overwrite_a=1, overwrite_b=1)
    if center == "feature":
        factor = factor[1:, 1:]
    else:
        # The first column of R is (ρ, 0, …, 0), so the outer product with s reaches the first row only.
        factor[0, 1:] += factor[0, 0] * shift
        factor = factor[:, 1:]
    values: FloatArray = torch.linalg.svdvals(torch.from_numpy(factor)).numpy()
    return values[: min(num_samples, num_features)]


def _checked_mask(name: str, mask: Any, num_samples: int) -> NDArray[np.bool_]:
    values = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask)
    if values.shape != (num_samples,) or values.dtype != bool:
        raise InvalidInputError(
            f"Expected a mask of bool ({num_samples},) for subset {name!r}, one value per row of X; "
            f"got {values.dtype} of shape {values.shape}."
        )
    if not values.any():
        raise InvalidInputError(f"Expected at least one row in subset {name!r}, got none. Leave it out.")
    return values
