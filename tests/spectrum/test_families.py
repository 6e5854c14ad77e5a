"""Synthetic spectra: shares that add up, and the limits they claim to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.spectrum import family_spectra, family_table, largest_singular_value_ratio, singular_value_entropy
from nml_kit.spectrum.metrics import FAMILIES, family_shares

RANKS = st.integers(2, 60)
PLACES = st.floats(0, 1)


def sve_of(family, first_share, r):
    return singular_value_entropy(family_shares(family, first_share, r))


@pytest.mark.parametrize("family", FAMILIES)
@given(r=RANKS, place=PLACES)
def test_shares_of_any_member(family, r, place):
    first_share = 1 / r + place * (1 - 1 / r)
    shares = family_shares(family, first_share, r)
    assert shares.shape == (r,)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 1e-12).all()
    assert shares[0] == pytest.approx(first_share)
    assert largest_singular_value_ratio(shares) == pytest.approx(-np.log(first_share), abs=1e-9)


@given(r=RANKS, seed=st.integers(0, 10**6), decay=st.floats(0, 5))
def test_any_spectrum_lies_between_the_limits(r, seed, decay):
    values = np.random.default_rng(seed).exponential(size=r) * np.arange(1, r + 1) ** -decay
    first_share = float(values.max() / values.sum())
    sve = singular_value_entropy(values)
    assert sve_of("equal directions", first_share, r) <= sve + 1e-9
    assert sve <= sve_of("flat tail", first_share, r) + 1e-9


def test_families_meet_at_one_direction_and_at_flat():
    ends = family_table(16, points=5).groupby("family")[["sve", "lsvr"]].agg(["first", "last"])
    assert ends.to_numpy().ravel().tolist() == pytest.approx([0, np.log(16)] * 6, abs=1e-6)


def test_spectra_of_one_lsvr():
    spectra = family_spectra(1.5, 32)
    for _, part in spectra.groupby("family"):
        assert largest_singular_value_ratio(part["share"]) == pytest.approx(1.5)
    assert spectra["index"].max() == 32


def test_errors():
    with pytest.raises(InvalidInputError, match="from 1/r to 1"):
        family_shares("flat tail", 0.1, 4)
    with pytest.raises(UnknownNameError, match="family"):
        family_shares("flat", 0.5, 4)
