"""Numbers that summarise a singular spectrum, and synthetic spectra between their limits.

Every metric is a pure function of the r singular values σ₁ ≥ … ≥ σ_r ≥ 0, with shares p_i = σ_i / Σσ and eigenvalues
λ_i = σ_i². The order of the values does not matter, scaling them all by c > 0 changes nothing, zeros are allowed
(0 · ln 0 = 0), and NaN, infinite, negative or all-zero values raise InvalidInputError.
"""

import math
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.spectrum.rows import FloatArray

FAMILIES = ("flat tail", "geometric decay", "equal directions")
_RANKME_EPSILON = 1e-7  # for float32 features
_ALPHA_RANKS = (11, 500)  # counted from 1, both included


def singular_value_entropy(singular_values: ArrayLike) -> float:
    """Return the singular value entropy, SVE = −Σ p ln p: 0 for rank one, ln r for a flat spectrum.

    `singular_values` is (r,). Definition 2.1 of Chen et al., ICLR 2024. In nats. Constant matrix: 0.

    >>> round(singular_value_entropy([1.0, 1.0]), 6)
    0.693147
    """
    shares = _shares(singular_values)
    positive = shares[shares > 0]
    return max(0.0, -float((positive * np.log(positive)).sum()))  # 0.0 first: it wins over −0.0


def largest_singular_value_ratio(singular_values: ArrayLike) -> float:
    """Return the largest singular value ratio, LSVR = −ln(σ₁ / Σσ): 0 for rank one, ln r for a flat spectrum.

    `singular_values` is (r,). Definition 2.2 of Chen et al., ICLR 2024 (mind the minus: a *dominant* first
    direction gives a *small* LSVR). In nats. Constant matrix: 0.

    >>> round(largest_singular_value_ratio([2.0, 1.0, 1.0]), 6)
    0.693147
    """
    return max(0.0, -float(np.log(_shares(singular_values)[0])))


def cumulative_energy(singular_values: ArrayLike) -> Float[np.ndarray, " r"]:
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
    """Return every scalar metric of a spectrum by name; `singular_values` is (r,).

    - sve, lsvr: see the functions of these names, nats
    - effective_rank: exp(SVE), from 1 to r (Roy & Vetterli, EUSIPCO 2007)
    - rankme: exp(−Σ p ln p) with p_i = σ_i / Σσ + 1e-7, of values, not squares (Garrido et al., ICML 2023, equation 1)
    - stable_rank: Σσ² / σ₁², from 1 to r (Rudelson & Vershynin, J. ACM 2007)
    - participation_ratio: (Σλ)² / Σλ², from 1 to r (Gao et al., bioRxiv 2017), of the covariance where values are of
      centred features
    - alpha_exponent: α of λ_i ∝ i^(−α), see below; NaN with fewer than two values in its window, as for r < 12

    α is fitted by least squares of ln λ on ln i, each rank weighted by 1/i so that every decade counts alike, over the
    ranks 11 to 500, cut at the numerical rank σ > ε·r·σ₁ (Stringer et al., Nature 2019; Agrawal et al., NeurIPS 2022).

    >>> {name: round(value, 3) for name, value in spectrum_metrics([2.0, 1.0, 1.0]).items() if value < 1.2}
    {'sve': 1.04, 'lsvr': 0.693}
    """
    values = _spectrum(singular_values)
    sve, eigenvalues, shares = singular_value_entropy(values), np.square(values), _shares(values) + _RANKME_EPSILON
    return {
        "sve": sve,
        "lsvr": largest_singular_value_ratio(values),
        "effective_rank": float(np.exp(sve)),
        "rankme": float(np.exp(-(shares * np.log(shares)).sum())),
        "stable_rank": float(eigenvalues.sum()),
        "participation_ratio": float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()),
        "alpha_exponent": _alpha_exponent(values),
    }


def family_shares(family: str, first_share: float, r: int) -> Float[np.ndarray, " r"]:
    """Return the shares p (r,), descending and of sum 1, of the spectrum of a family whose first share is given.

    A first share p₁ fixes LSVR = −ln p₁, but leaves SVE free within limits. "flat tail": the others share the rest
    equally, the largest SVE that this LSVR allows. "geometric decay": p_i ∝ q^i. "equal directions": p₁ as often as it
    fits, then the rest, the smallest SVE. Raises InvalidInputError unless 1/r ≤ first_share ≤ 1 and r ≥ 2,
    UnknownNameError for a family.

    >>> family_shares("equal directions", 0.4, 4)
    array([0.4, 0.4, 0.2, 0. ])
    """
    if family not in FAMILIES:
        raise unknown_name("family of spectra", family, FAMILIES)
    if r < 2 or not 1 / r - 1e-12 <= first_share <= 1:
        raise InvalidInputError(
            f"Expected r ≥ 2 and a first share from 1/r to 1, got r={r}, first_share={first_share}."
        )
    if family == "flat tail":
        return np.append(first_share, np.full(r - 1, (1 - first_share) / (r - 1)))
    if family == "equal directions":
        return np.clip(1 - first_share * np.arange(r), 0, first_share)
    if first_share <= 1 / r + 1e-12:
        return np.full(r, 1 / r)
    powers = np.arange(r)
    decay = brentq(lambda q: (q**powers).sum() * first_share - 1, 0.0, 1.0, xtol=1e-15)
    return decay**powers / (decay**powers).sum()


def family_table(r: int, *, points: int = 60) -> pd.DataFrame:
    """Return SVE and LSVR (nats) along each family, from one direction (both 0) to flat (both ln r).

    Columns: family, first_share (fraction), sve, lsvr; `points` rows a family, equally spaced in LSVR.

    >>> family_table(8, points=3).query("family == 'flat tail'")["lsvr"].round(3).tolist()
    [0.0, 1.04, 2.079]
    """
    rows = []
    for family, lsvr in product(FAMILIES, np.linspace(0, np.log(r), points)):
        first_share = float(np.clip(np.exp(-lsvr), 1 / r, 1))
        sve = singular_value_entropy(family_shares(family, first_share, r))
        rows.append({"family": family, "first_share": first_share, "sve": sve, "lsvr": lsvr})
    return pd.DataFrame(rows)


def family_spectra(lsvr: float, r: int) -> pd.DataFrame:
    """Return the spectra that have one LSVR (nats), a family each: family, index (from 1), share.

    >>> family_spectra(float(np.log(2)), 4).groupby("family")["share"].max().round(6).tolist()
    [0.5, 0.5, 0.5]
    """
    frame = pd.DataFrame({family: family_shares(family, float(np.exp(-lsvr)), r) for family in FAMILIES})
    index = range(1, r + 1)
    return frame.assign(index=index).melt("index", var_name="family", value_name="share")


def _alpha_exponent(values: FloatArray) -> float:
    first, last = _ALPHA_RANKS
    window = values[first - 1 : last]
    window = window[window > np.finfo(np.float64).eps * len(values)]
    if len(window) < 2:
        return math.nan
    ranks = np.arange(first, first + len(window))
    # polyfit squares its weights: 1/√i there is 1/i in the sum of squares.
    return -float(np.polyfit(np.log(ranks), 2.0 * np.log(window), 1, w=1.0 / np.sqrt(ranks))[0])


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
    if not values.any():
        raise InvalidInputError(
            "Expected a non-zero singular value, got only zeros: the matrix is zero, or constant and centred."
        )
    return np.sort(values / values.max())[::-1]


def _shares(singular_values: ArrayLike) -> FloatArray:
    values = _spectrum(singular_values)
    return values / values.sum()
