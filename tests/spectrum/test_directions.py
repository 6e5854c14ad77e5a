"""Singular directions, against numpy, scikit-learn and what must stay the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_selection import f_classif

from nml_kit.errors import InvalidInputError
from nml_kit.spectrum import described_direction, singular_directions
from nml_kit.spectrum.directions import class_separation


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 8))
def test_loadings_and_directions_make_the_matrix(seed, n, d):
    X = np.random.default_rng(seed).standard_normal((n, d))
    loadings, directions = singular_directions(X)
    np.testing.assert_allclose(loadings @ directions, X, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(loadings, axis=0), np.linalg.svd(X, compute_uv=False), atol=1e-12)
    np.testing.assert_allclose(directions @ directions.T, np.eye(min(n, d)), atol=1e-12)
    assert (loadings.sum(axis=0) > -1e-9).all()


def test_class_separation_is_the_share_that_analysis_of_variance_finds():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    loadings = generator.standard_normal((60, 4)) + labels[:, None] * [0, 0.5, 1, 5]
    f, _ = f_classif(loadings, labels)
    expected = 2 * f / (2 * f + 57)  # η² = F·df₁ / (F·df₁ + df₂)
    found = [class_separation(direction, labels) for direction in loadings.T]
    np.testing.assert_allclose(found, expected)


def test_separation_ignores_scale_and_shift_and_is_zero_where_nothing_varies():
    generator = np.random.default_rng(1)
    direction, labels = generator.standard_normal(50), generator.integers(0, 4, 50)
    assert class_separation(5 - 3 * direction, labels) == pytest.approx(class_separation(direction, labels))
    assert class_separation(np.ones(5), np.arange(5)) == 0.0


def test_the_strongest_samples_lead_in_absolute_loading():
    loadings = np.random.default_rng(2).standard_normal((40, 5))
    found, captions, _ = described_direction(loadings, 3, np.zeros(40, int), ["cat"], 7)
    rest = np.setdiff1d(np.arange(40), found)
    assert np.abs(loadings[found, 2]).min() >= np.abs(loadings[rest, 2]).max()
    assert (np.diff(np.abs(loadings[found, 2])) <= 0).all()
    assert captions[0] == f"cat {loadings[found[0], 2]:+.2f}"


def test_errors_say_what_is_wrong():
    with pytest.raises(InvalidInputError, match="finite matrix"):
        singular_directions([[1.0, np.nan]])
    with pytest.raises(InvalidInputError, match="from 1 to 2, got 0"):
        described_direction(np.ones((3, 2)), 0, np.zeros(3, int), ["cat"], 1)
