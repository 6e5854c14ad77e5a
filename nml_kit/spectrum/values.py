"""Singular spectra of feature matrices and the numbers that summarise them.

`singular_values` reads a feature matrix in chunks, `grouped_singular_values` each group of its rows,
`spectra_of_subsets` overlapping subsets of them in one pass, and `SpectrumAccumulator` takes rows as they come;
every metric is a pure function of the singular values they return. N samples, D features, r = min(N, D) singular
values σ₁ ≥ … ≥ σ_r ≥ 0, shares p_i = σ_i / Σσ, eigenvalues λ_i = σ_i².

Rules that all metrics share: the order of the values does not matter, scaling them all by c > 0 changes
nothing, zeros are allowed (0 · ln 0 = 0), and NaN, infinite, negative or all-zero values raise
`InvalidInputError`. With N < D the spectrum has r = N values and the metric is that of those N values.
"""

import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nml_kit.errors import InvalidInputError, PrecisionLossError
from nml_kit.spectrum.accumulator import SpectrumAccumulator as SpectrumAccumulator
from nml_kit.spectrum.qr import qr_singular_values
from nml_kit.spectrum.rows import BLOCK_ROWS, Center, FloatArray, PickedRows, check_center, matrix_shape, row_slices
from nml_kit.spectrum.subsets import spectra_of_subsets as spectra_of_subsets

_RANKME_EPSILON = 1e-7  # the ε of Garrido et al. 2023, for float32 features


def singular_values(X: Any, *, center: Center = "none", chunk_size: int | None = None) -> FloatArray:
    """Return the singular values of a feature matrix, descending, in one or two passes over its rows.

    X is (N, D): an array, a tensor on any device, a memory-map, or anything with `.shape` and row slices, of any real
    dtype; it is read in chunks of `chunk_size` rows (default: 512), so memory is O(chunk_size · D + D²)
    at any N. `center` subtracts nothing ("none"), the mean of each column ("feature") or the mean of each row
    ("sample"). The result is float64 (min(N, D),), in the units of X.

    SVE and LSVR agree with those of `numpy.linalg.svd` of the float64 matrix to a relative 1e-6, each value to 5 % of
    itself and 1e-7 · σ₁. One pass accumulates the Gram matrix (`SpectrumAccumulator`), whose eigenvalues come with an
    error bound; where the bound exceeds that (values below about 1e-7 · σ₁, as of a deficient rank), a second pass
    by QR gives each value to about 1e-14 · σ₁, some three times slower.

    N < D gives N values (with `center="feature"` the last is 0). A constant matrix gives one non-zero value,
    or none once centred. Raises `InvalidInputError` for NaN or infinite entries (naming the first such row), an X that
    is not two-dimensional, real or is empty, an unknown `center` or a `chunk_size` below 1.

    >>> import numpy as np
    >>> singular_values(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    array([4., 3.])
    >>> singular_values(np.full((5, 3), 7.0), center="feature")
    array([0., 0., 0.])
    """
    matrix_shape(X)
    check_center(center)
    rows = BLOCK_ROWS if chunk_size is None else chunk_size
    with suppress(PrecisionLossError):
        return _one_pass(X, center, rows)
    return qr_singular_values(X, center)


def grouped_singular_values(X: Any, groups: ArrayLike, *, center: Center = "none") -> dict[Any, FloatArray]:
    """Return the singular values of the rows of each group (class, domain, split), by group value in ascending order.

    X is (N, D) as for `singular_values` and also takes an array of row numbers, as arrays, tensors and memory-maps do;
    `groups` is (N,), numbers or texts. The values of a group of n rows are float64 (min(n, D),), those of
    `singular_values` of its rows. Groups are worked on one after the other and each row is read once (twice in a group
    that needs QR): memory is that of `singular_values`, whatever the number of groups. Raises `InvalidInputError` as
    `singular_values` does, for another number of groups than rows, and for a missing group.

    >>> import numpy as np
    >>> grouped_singular_values(np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]), ["a", "b", "b"])
    {'a': array([5.]), 'b': array([2., 1.])}
    """
    num_samples, _ = matrix_shape(X)
    names, positions = _group_positions(groups, num_samples)
    order = np.argsort(positions, kind="stable")
    rows_of_groups = np.split(order, np.cumsum(np.bincount(positions))[:-1])
    return {
        name: singular_values(PickedRows(X, rows), center=center)
        for name, rows in zip(names, rows_of_groups, strict=True)
    }


def singular_value_entropy(singular_values: ArrayLike) -> float:
    """Return the singular value entropy, SVE = −Σ p ln p: 0 for rank one, ln r for a flat spectrum.

    `singular_values` is (r,). Definition 2.1 of Chen et al., ICLR 2024. In nats. Constant matrix: 0.

    >>> round(singular_value_entropy([1.0, 1.0]), 6)
    0.693147
    """
    shares = _shares(_spectrum(singular_values))
    positive = shares[shares > 0]
    return _nonnegative(-(positive * np.log(positive)).sum())


def largest_singular_value_ratio(singular_values: ArrayLike) -> float:
    """Return the largest singular value ratio, LSVR = −ln(σ₁ / Σσ): 0 for rank one, ln r for a flat spectrum.

    `singular_values` is (r,). Definition 2.2 of Chen et al., ICLR 2024 (mind the minus: a *dominant* first
    direction gives a *small* LSVR). In nats. Constant matrix: 0.

    >>> round(largest_singular_value_ratio([2.0, 1.0, 1.0]), 6)
    0.693147
    """
    return _nonnegative(-np.log(_shares(_spectrum(singular_values))[0]))


def effective_rank(singular_values: ArrayLike) -> float:
    """Return the effective rank exp(SVE), between 1 and r.

    `singular_values` is (r,). Roy & Vetterli, EUSIPCO 2007. Constant matrix: 1.

    >>> round(effective_rank([1.0, 1.0, 0.0]), 6)
    2.0
    """
    return float(np.exp(singular_value_entropy(singular_values)))


def rankme(singular_values: ArrayLike) -> float:
    """Return RankMe, exp(−Σ p ln p) with p_i = σ_i / Σσ + 1e-7.

    `singular_values` is (r,): the values themselves, not their squares. Garrido et al., ICML 2023, equation 1
    and its ε. It exceeds `effective_rank` by a little where the spectrum has many zeros. Constant matrix: 1 +
    O(r · 1e-6).

    >>> round(rankme([1.0, 1.0]), 4)
    2.0
    """
    shares = _shares(_spectrum(singular_values)) + _RANKME_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(singular_values: ArrayLike) -> float:
    """Return the stable rank ‖X‖²_F / σ₁² = Σσ² / σ₁², between 1 and r.

    `singular_values` is (r,). Rudelson & Vershynin, J. ACM 2007. Constant matrix: 1.

    >>> stable_rank([2.0, 2.0, 1.0])
    2.25
    """
    return float(np.square(_spectrum(singular_values)).sum())


def participation_ratio(singular_values: ArrayLike) -> float:
    """Return the participation ratio (Σλ)² / Σλ² of the eigenvalues λ = σ², between 1 and r.

    `singular_values` is (r,). Gao et al., bioRxiv 2017; of the covariance when the values come from
    `center="feature"`. Constant matrix: 1.

    >>> participation_ratio([1.0, 1.0, 1.0, 0.0])
    3.0
    """
    eigenvalues = np.square(_spectrum(singular_values))
    return float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())


def alpha_exponent(singular_values: ArrayLike, *, first_rank: int = 11, last_rank: int = 500) -> float:
    """Return the exponent α of the power law λ_i ∝ i^(−α) fitted to the eigenvalues λ = σ².

    `singular_values` is (r,). Least squares of ln λ on ln i, each rank weighted by 1/i so that every decade
    counts alike, over the ranks `first_rank` … `last_rank` (counted from 1, both included; cut at the
    numerical rank, σ > ε·r·σ₁): the fit and the window 11–500 of Stringer et al., Nature 2019, taken up by
    α-ReQ (Agrawal et al., NeurIPS 2022). NaN when fewer than two such values lie in the window, as for a
    constant matrix or r < 12: nothing decays there. Raises `InvalidInputError` unless 1 ≤ first_rank <
    last_rank.

    >>> import numpy as np
    >>> round(alpha_exponent(np.arange(1, 101) ** -0.5), 6)
    1.0
    """
    if not 1 <= first_rank < last_rank:
        raise InvalidInputError(
            f"Expected 1 <= first_rank < last_rank, got first_rank={first_rank}, last_rank={last_rank}."
        )
    values = _spectrum(singular_values)
    window = values[first_rank - 1 : last_rank]
    window = window[window > np.finfo(np.float64).eps * len(values)]
    if len(window) < 2:
        return math.nan
    ranks = np.arange(first_rank, first_rank + len(window))
    # polyfit squares its weights: 1/√i there is 1/i in the sum of squares.
    slope = np.polyfit(np.log(ranks), 2.0 * np.log(window), 1, w=1.0 / np.sqrt(ranks))[0]
    return float(-slope)


def cumulative_energy(singular_values: ArrayLike) -> FloatArray:
    """Return the share of Σσ² that the first 1, 2, …, r directions hold.

    `singular_values` is (r,); the result is float64 (r,), non-decreasing fractions that end at 1 (the
    explained variance of principal components when the values come from `center="feature"`). Constant matrix:
    all ones.

    >>> cumulative_energy([2.0, 1.0, 1.0, 0.0])
    array([0.66666667, 0.83333333, 1.        , 1.        ])
    """
    energy = np.cumsum(np.square(_spectrum(singular_values)))
    return energy / energy[-1]


def spectrum_metrics(singular_values: ArrayLike) -> dict[str, float]:
    """Return every scalar metric of a spectrum by name.

    `singular_values` is (r,). Keys: sve, lsvr, effective_rank, rankme, stable_rank, participation_ratio and
    alpha_exponent (NaN where undefined); each is the function of that name with its defaults.

    >>> {name: round(value, 3) for name, value in spectrum_metrics([2.0, 1.0, 1.0]).items() if value < 1.2}
    {'sve': 1.04, 'lsvr': 0.693}
    """
    return {
        "sve": singular_value_entropy(singular_values),
        "lsvr": largest_singular_value_ratio(singular_values),
        "effective_rank": effective_rank(singular_values),
        "rankme": rankme(singular_values),
        "stable_rank": stable_rank(singular_values),
        "participation_ratio": participation_ratio(singular_values),
        "alpha_exponent": alpha_exponent(singular_values),
    }


def _one_pass(X: Any, center: Center, rows: int) -> FloatArray:
    accumulator = SpectrumAccumulator(X.shape[1])
    for chunk in row_slices(X, rows):
        accumulator.update(chunk)
    return accumulator.singular_values(center=center)


def _group_positions(groups: ArrayLike, num_samples: int) -> tuple[list[Any], NDArray[np.intp]]:
    """The distinct groups, ascending, and for each row the position of its group among them."""
    values = np.asarray(groups)
    if values.shape != (num_samples,):
        raise InvalidInputError(f"Expected one group per row, shape ({num_samples},), got shape {values.shape}.")
    missing = np.flatnonzero([value is None or value != value for value in values.tolist()])
    if missing.size:
        raise InvalidInputError(f"Expected a group for every row, got none for row {missing[0]}. Drop or name it.")
    try:
        names, positions = np.unique(values, return_inverse=True)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in values.tolist()})
        raise InvalidInputError(f"Expected groups of one kind, got {' and '.join(kinds)}. Convert them.") from None
    return names.tolist(), positions


def _spectrum(singular_values: ArrayLike) -> FloatArray:
    """Validate singular values; return them descending and over the largest, so that squares are safe."""
    values = np.asarray(singular_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InvalidInputError(
            f"Expected singular values of shape (r,) with r >= 1, got shape {values.shape}. "
            "Pass the result of singular_values(X), not X itself."
        )
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if bad.size:
        raise InvalidInputError(
            f"Expected finite, non-negative singular values, got {values[bad[0]]} at index {bad[0]}."
        )
    largest = values.max()
    if largest == 0:
        raise InvalidInputError(
            "Expected at least one non-zero singular value, got only zeros: "
            "the matrix is zero, or constant and centred."
        )
    return np.sort(values / largest)[::-1]


def _shares(values: FloatArray) -> FloatArray:
    return values / values.sum()


def _nonnegative(value: Any) -> float:
    """Turn the −0.0 or −1e-17 that rounding leaves at the lower bound into 0."""
    return max(float(value), 0.0)
