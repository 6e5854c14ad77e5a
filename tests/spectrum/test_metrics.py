"""Metrics of spectra against closed forms, an oracle and their invariants."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nml_kit.errors import InvalidInputError
from nml_kit.spectrum import (
    cumulative_energy,
    largest_singular_value_ratio,
    singular_value_entropy,
    spectrum_metrics,
)

RANKS = ["effective_rank", "rankme", "stable_rank", "participation_ratio"]


def alpha_exponent(values):
    return spectrum_metrics(values)["alpha_exponent"]


def test_flat_spectrum():
    flat = np.full(8, 3.0)
    assert singular_value_entropy(flat) == pytest.approx(math.log(8))
    assert largest_singular_value_ratio(flat) == pytest.approx(math.log(8))
    metrics = spectrum_metrics(flat)
    assert [metrics[name] for name in RANKS] == pytest.approx([8] * 4, rel=1e-4)
    np.testing.assert_allclose(cumulative_energy(flat), np.arange(1, 9) / 8)


def test_one_direction():
    one = np.array([5.0, 0.0, 0.0])
    assert singular_value_entropy(one) == 0.0
    assert largest_singular_value_ratio(one) == 0.0
    assert [str(metric(one)) for metric in (singular_value_entropy, largest_singular_value_ratio)] == ["0.0", "0.0"]
    metrics = spectrum_metrics(one)
    assert [metrics[name] for name in RANKS] == pytest.approx([1.0] * 4, abs=1e-5)
    assert math.isnan(alpha_exponent(one))
    np.testing.assert_array_equal(cumulative_energy(one), np.ones(3))


def test_hand_computed_values():
    values = [2.0, 1.0, 1.0]
    assert singular_value_entropy(values) == pytest.approx(1.5 * math.log(2))
    assert largest_singular_value_ratio(values) == pytest.approx(math.log(2))
    metrics = spectrum_metrics(values)
    assert metrics["sve"] == singular_value_entropy(values)
    assert metrics["lsvr"] == largest_singular_value_ratio(values)
    assert metrics["stable_rank"] == pytest.approx(1.5)
    assert metrics["participation_ratio"] == pytest.approx(36 / 18)
    shares = np.array([0.5, 0.25, 0.25]) + 1e-7
    assert metrics["rankme"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    np.testing.assert_allclose(cumulative_energy(values), [4 / 6, 5 / 6, 1])


def test_entropy_agrees_with_scipy():
    values = np.random.default_rng(0).random(50)
    assert singular_value_entropy(values) == pytest.approx(scipy.stats.entropy(values))
    assert spectrum_metrics(values)["effective_rank"] == pytest.approx(math.exp(scipy.stats.entropy(values)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_alpha_of_an_exact_power_law_and_its_window(alpha):
    eigenvalues = np.arange(1, 301) ** -alpha
    assert alpha_exponent(np.sqrt(eigenvalues)) == pytest.approx(alpha)
    eigenvalues[:10] = eigenvalues[9] * 5000  # outside the window 11 … 500
    assert alpha_exponent(np.sqrt(eigenvalues)) == pytest.approx(alpha)
    rounded_tail = np.concatenate([np.sqrt(eigenvalues), np.full(50, 1e-17)])
    assert alpha_exponent(rounded_tail) == pytest.approx(alpha)


def test_alpha_weighs_each_decade_alike():
    """Against the weighted normal equations, weights 1/rank, solved here."""
    values = np.sort(np.random.default_rng(1).random(200))[::-1]
    ranks = np.arange(11, 201)
    design = np.stack([-np.log(ranks), np.ones(190)], axis=1)
    weighted = design / ranks[:, None]
    slope = np.linalg.solve(weighted.T @ design, weighted.T @ np.log(values[10:] ** 2))[0]
    assert alpha_exponent(values) == pytest.approx(slope)


@settings(max_examples=100, deadline=None)
@given(
    values=arrays(np.float64, st.integers(1, 30), elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e6))).filter(
        lambda values: values.any()
    ),
    factor=st.floats(1e-150, 1e150),
)
def test_metrics_are_bounded_and_ignore_scale_and_order(values, factor):
    size, scaled = len(values), spectrum_metrics(values[::-1] * factor)
    for name, value in spectrum_metrics(values).items():
        if name == "alpha_exponent":
            continue
        assert scaled[name] == pytest.approx(value, rel=1e-9, abs=1e-9)
        lower, upper = (1, size) if name in RANKS else (0, math.log(size))
        assert lower - 1e-6 <= value <= upper * (1 + 1e-5) + 1e-6
    assert largest_singular_value_ratio(values) <= singular_value_entropy(values) + 1e-9
    energy = cumulative_energy(values)
    assert (np.diff(energy) >= 0).all()
    assert energy[-1] == 1.0


@pytest.mark.parametrize(
    "metric", [singular_value_entropy, largest_singular_value_ratio, cumulative_energy, spectrum_metrics]
)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, math.nan], "non-negative singular values, got nan at index 1"),
        ([math.inf], "got inf at index 0"),
        ([2.0, 1.0, -1.0], "got -1.0 at index 2"),
        ([0.0, 0.0], "only zeros: the matrix is zero, or constant and centred"),
        ([], r"shape \(r,\) with r >= 1, got shape \(0,\)"),
        ([[1.0, 2.0]], r"got shape \(1, 2\). Pass the result of singular_values"),
    ],
)
def test_bad_spectra_are_named(metric, values, message):
    with pytest.raises(InvalidInputError, match=message):
        metric(values)
