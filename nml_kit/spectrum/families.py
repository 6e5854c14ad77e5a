"""Synthetic spectra between a single direction and a flat one, with SVE and LSVR in closed form.

A share p₁ of the first direction fixes LSVR = −ln p₁, but leaves SVE free within limits: the tail may be flat (the
largest SVE that this LSVR allows), decay, or repeat the first value as often as it fits (the smallest).
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from nml_kit.errors import InvalidInputError, unknown_name

FAMILIES = ("flat tail", "geometric decay", "equal directions")


def family_shares(family: str, first_share: float, r: int) -> NDArray[np.float64]:
    """The shares p (r,), descending and of sum 1, of the member of a family whose first share is `first_share`.

    "flat tail": the others share the rest equally. "geometric decay": p_i ∝ q^i. "equal directions": p₁ as often as it
    fits, then the rest. Raises InvalidInputError unless 1/r ≤ first_share ≤ 1 and r ≥ 2, UnknownNameError for a family.

    >>> family_shares("equal directions", 0.4, 4)
    array([0.4, 0.4, 0.2, 0. ])
    """
    _check(family, first_share, r)
    if family == "flat tail":
        return np.append(first_share, np.full(r - 1, (1 - first_share) / (r - 1)))
    if family == "geometric decay":
        powers = _decay(first_share, r) ** np.arange(r)
        return powers / powers.sum()
    return np.clip(1 - first_share * np.arange(r), 0, first_share)


def family_sve(family: str, first_share: float, r: int) -> float:
    """SVE (nats) of `family_shares` in closed form, without the spectrum; errors as there.

    >>> round(family_sve("flat tail", 0.5, 3), 4), round(float(np.log(2) / 2 + np.log(4) / 2), 4)
    (1.0397, 1.0397)
    """
    _check(family, first_share, r)
    rest = 1 - first_share
    if family == "flat tail":
        return _plogp(first_share) + _plogp(rest) + rest * float(np.log(r - 1))
    if family == "geometric decay":
        q = _decay(first_share, r)
        if q in (0.0, 1.0):
            return float(np.log(r)) * q
        mean_index = q / (1 - q) - r * q**r / (1 - q**r)
        return float(-np.log(first_share) - np.log(q) * mean_index)
    whole = int(1 / first_share + 1e-12)
    return whole * _plogp(first_share) + _plogp(max(1 - whole * first_share, 0.0))


def family_table(r: int, *, points: int = 60) -> pd.DataFrame:
    """SVE and LSVR (nats) along each family, from one direction (both 0) to flat (both ln r).

    Columns: family, first_share (fraction), sve, lsvr; `points` rows a family, equally spaced in LSVR.

    >>> family_table(8, points=3).query("family == 'flat tail'")["lsvr"].round(3).tolist()
    [0.0, 1.04, 2.079]
    """
    lsvr = np.linspace(0, np.log(r), points)
    first_shares = np.clip(np.exp(-lsvr), 1 / r, 1)
    return pd.DataFrame([
        {"family": family, "first_share": share, "sve": family_sve(family, float(share), r), "lsvr": value}
        for family in FAMILIES for share, value in zip(first_shares, lsvr, strict=True)
    ])  # fmt: skip


def family_spectra(lsvr: float, r: int) -> pd.DataFrame:
    """The whole spectra of the members that have one LSVR (nats): family, index (from 1), share; errors as above.

    >>> family_spectra(float(np.log(2)), 4).groupby("family")["share"].max().round(6).tolist()
    [0.5, 0.5, 0.5]
    """
    first_share = float(np.exp(-lsvr))
    frames = [
        pd.DataFrame({"family": family, "index": np.arange(1, r + 1), "share": family_shares(family, first_share, r)})
        for family in FAMILIES
    ]
    return pd.concat(frames, ignore_index=True)


def _check(family: str, first_share: float, r: int) -> None:
    if family not in FAMILIES:
        raise unknown_name("family of spectra", family, FAMILIES)
    if r < 2 or not 1 / r - 1e-12 <= first_share <= 1:
        raise InvalidInputError(
            f"Expected r ≥ 2 and a first share from 1/r to 1, got r={r}, first_share={first_share}."
        )


def _decay(first_share: float, r: int) -> float:
    """The q of p_i ∝ q^i with p₁ = (1 − q) / (1 − q^r) = first_share; its ends are 1 (flat) and 0."""
    if first_share >= 1:
        return 0.0
    if first_share <= 1 / r + 1e-12:
        return 1.0
    return float(brentq(lambda q: (q ** np.arange(r)).sum() * first_share - 1, 0.0, 1.0, xtol=1e-15))


def _plogp(share: float) -> float:
    return float(-share * np.log(share)) if share > 0 else 0.0
