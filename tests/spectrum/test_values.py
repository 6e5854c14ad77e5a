"""Spectra against float64 SVD, metrics against closed forms, an oracle and their invariants."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nml_kit.errors import InvalidInputError, PrecisionLossError, UnknownNameError
from nml_kit.spectrum import (
    SpectrumAccumulator,
    grouped_singular_values,
    largest_singular_value_ratio,
    singular_value_entropy,
    singular_values,
    spectra_of_subsets,
)

CENTERS = ["none", "feature", "sample"]


def matrix(kind, num_samples, num_features, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((num_samples, num_features))
    if kind.startswith("decaying to "):
        decay = np.geomspace(1, float(kind.removeprefix("decaying to ")), num_features)
        return X @ np.diag(decay) @ rng.standard_normal((num_features,) * 2)
    if kind == "rank 5":
        return X[:, :5] @ rng.standard_normal((5, num_features))
    if kind == "large mean":
        return X * np.logspace(0, -6, num_features) + 1e4
    if kind == "duplicated columns":
        return np.repeat(X[:, : num_features // 2], 2, axis=1)
    if kind == "zero columns":
        return X * (np.arange(num_features) % 3 > 0)
    if kind == "not negative":
        return np.maximum(X + 0.3 * X[:, :1], 0)
    if kind == "1e-150":
        return X * 1e-150
    if kind == "1e150":
        return X * 1e150
    if kind == "one large column":
        return np.concatenate([np.full((num_samples, 1), 1e150), X[:, 1:]], axis=1)
    return X


KINDS = [
    "well-conditioned", "decaying to 1e-6", "decaying to 1e-12", "rank 5", "large mean", "duplicated columns",
    "zero columns", "not negative", "1e-150", "1e150",
]  # fmt: skip


class CountingRows:
    """A matrix that can only be sliced, and counts how often each of its rows is read."""

    def __init__(self, X):
        self.shape = X.shape
        self.reads = np.zeros(len(X), dtype=int)
        self._X = X

    def __getitem__(self, rows):
        self.reads[rows] += 1
        return self._X[rows]


def centred(X, center):
    if center == "feature":
        return X - X.mean(axis=0)
    return X - X.mean(axis=1, keepdims=True) if center == "sample" else X


def assert_contract(actual, expected, scale=0.0):
    """The promise of `singular_values`; `scale` is where the reference rounds, if not at its largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7 * expected[0] + 1e-14 * scale)
    for metric in (singular_value_entropy, largest_singular_value_ratio):
        assert metric(actual) == pytest.approx(metric(expected), rel=1e-6)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(400, 48), (48, 48), (49, 48), (20, 48), (3000, 48)], ids=str)
def test_values_equal_a_float64_svd(center, kind, shape):
    X = matrix(kind, *shape)
    expected = np.linalg.svd(centred(X, center), compute_uv=False)
    actual = singular_values(X, center=center, chunk_size=37)
    assert actual.dtype == np.float64
    assert actual.shape == (min(shape),)
    # With a large mean the reference itself rounds at 1e-16 of the mean when it subtracts it.
    assert_contract(actual, expected, scale=np.abs(X).max() * math.sqrt(X.size))


@pytest.mark.parametrize("center", CENTERS)
def test_rank_100_of_many_features_in_float32(center):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((900, 100)) @ rng.standard_normal((100, 512))).astype(np.float32)
    expected = np.linalg.svd(centred(X.astype(np.float64), center), compute_uv=False)
    assert_contract(singular_values(X, center=center), expected)


@pytest.mark.parametrize("largest", [1e-308, 1e-200, 1e-150, 1e150, 1e200, 1e290])
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("num_samples", [5, 60])
def test_the_scale_neither_overflows_nor_underflows(largest, center, num_samples):
    X = np.round(100 * matrix("large mean", num_samples, 6) + 1e6)  # whole numbers keep their digits near 1e-308
    expected = singular_values(X, center=center)
    actual = singular_values(X * (largest / 1e7), center=center) / (largest / 1e7)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7 * expected[0])


def test_a_large_constant_column_does_not_hide_the_others():
    X = matrix("one large column", 400, 8)
    expected = np.linalg.svd(X[:, 1:] - X[:, 1:].mean(axis=0), compute_uv=False)
    assert_contract(singular_values(X, center="feature")[:7], expected)
    assert singular_values(X)[0] == pytest.approx(1e150 * math.sqrt(400))


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(
    ("kind", "passes"),
    [("well-conditioned", 1), ("zero columns", 1), ("not negative", 1), ("1e-150", 2),
     ("decaying to 1e-12", 2), ("rank 5", 2), ("duplicated columns", 2)],
)  # fmt: skip
def test_rows_are_read_again_only_where_the_gram_matrix_would_lose_precision(kind, passes, center):
    if kind == "zero columns" and center == "sample":
        passes = 2  # the columns are no longer zero: the rank is deficient
    rows = CountingRows(matrix(kind, 400, 48))
    singular_values(rows, center=center, chunk_size=37)
    np.testing.assert_array_equal(rows.reads, passes)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_rows_than_features_are_read_once(kind):
    rows = CountingRows(matrix(kind, 48, 48))
    singular_values(rows, chunk_size=37)
    np.testing.assert_array_equal(rows.reads, 1)


@settings(max_examples=60, deadline=None)
@given(
    decay=st.floats(1e-9, 1),
    mean=st.sampled_from([0.0, 1.0, 1e3]),
    num_samples=st.integers(1, 400),
    num_features=st.integers(1, 20),
    center=st.sampled_from(CENTERS),
    seed=st.integers(0, 2**16),
)
def test_metrics_keep_the_contract_at_any_conditioning(decay, mean, num_samples, num_features, center, seed):
    X = mean + matrix(f"decaying to {decay}", num_samples, num_features, seed)
    expected = np.linalg.svd(centred(X, center), compute_uv=False)
    actual = singular_values(X, center=center)
    rounding = 1e-14 * (1 + np.linalg.norm(X))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7 * expected[0] + rounding)
    if expected[0] > 1e8 * rounding:
        for metric in (singular_value_entropy, largest_singular_value_ratio):
            assert metric(actual) == pytest.approx(metric(expected), rel=1e-6, abs=1e-9)


def test_many_chunks_lose_nothing():
    X = matrix("decaying to 1e-6", 20_000, 16)
    expected = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(singular_values(X, center="feature", chunk_size=20), expected, rtol=1e-9)


@pytest.mark.parametrize("center", CENTERS)
def test_any_container_and_dtype(tmp_path, center):
    X = matrix("well-conditioned", 60, 12).astype(np.float16)
    expected = singular_values(X.astype(np.float64), center=center)
    mapped = np.memmap(tmp_path / "x", dtype=np.float16, mode="w+", shape=X.shape)
    mapped[:] = X
    tensor = torch.from_numpy(X)
    containers = [X, mapped, tensor, tensor.float().requires_grad_(), np.asfortranarray(X)]
    for container in containers:
        np.testing.assert_array_equal(singular_values(container, center=center), expected)
    bfloat16 = singular_values(tensor.bfloat16(), center=center)
    np.testing.assert_allclose(bfloat16, expected, atol=0.02 * expected[0])


def test_input_is_not_changed():
    X = matrix("large mean", 30, 5)
    before = X.copy()
    for center in CENTERS:
        singular_values(X, center=center, chunk_size=8)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("value", [0.1, 7.0, 3e8])
def test_constant_matrix(value):
    X = np.full((5000, 6), value)
    values = singular_values(X, chunk_size=64)
    assert values[0] == pytest.approx(value * math.sqrt(X.size))
    assert singular_value_entropy(values) == pytest.approx(0, abs=1e-12)
    assert largest_singular_value_ratio(values) == pytest.approx(0, abs=1e-12)
    for center in ("feature", "sample"):
        np.testing.assert_array_equal(singular_values(X, center=center, chunk_size=64), np.zeros(6))


def test_one_sample_and_one_feature():
    np.testing.assert_allclose(singular_values(np.array([[3.0, 4.0]])), [5.0])
    np.testing.assert_array_equal(singular_values(np.array([[3.0, 4.0]]), center="feature"), [0.0])
    np.testing.assert_allclose(singular_values(np.array([[3.0], [4.0]])), [5.0])


@settings(max_examples=40, deadline=None)
@given(
    X=arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 8)), elements=st.floats(-9, 9, width=16)),
    chunk_size=st.integers(1, 13),
    center=st.sampled_from(CENTERS),
    seed=st.integers(0, 2**16),
)
def test_chunking_and_the_order_of_rows_do_not_matter(X, chunk_size, center, seed):
    whole = singular_values(X, center=center)
    shuffled = np.random.default_rng(seed).permutation(X)
    tolerance = 1e-12 * (1 + np.linalg.norm(X))
    np.testing.assert_allclose(singular_values(X, center=center, chunk_size=chunk_size), whole, atol=tolerance)
    np.testing.assert_allclose(singular_values(shuffled, center=center), whole, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), factor=st.floats(1e-6, 1e6), center=st.sampled_from(["none", "feature"]))
def test_scaling_and_rotation_leave_sve_and_lsvr(seed, factor, center):
    X = matrix("well-conditioned", 20, 9, seed)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((9, 9)))[0]
    before = singular_values(X, center=center)
    after = singular_values(factor * X @ rotation, center=center)
    for metric in (singular_value_entropy, largest_singular_value_ratio):
        assert metric(after) == pytest.approx(metric(before), rel=1e-9)


def test_bad_matrices_are_named():
    X = np.ones((50, 3))
    X[41, 1] = np.nan
    X[45, 0] = np.inf
    for features in (X, torch.from_numpy(X)):
        with pytest.raises(InvalidInputError, match="Expected finite features, got NaN or inf in row 41"):
            singular_values(features, chunk_size=8)
    with pytest.raises(InvalidInputError, match=r"shape \(samples, features\).* got ndarray of shape \(50,\)"):
        singular_values(X[:, 0])
    with pytest.raises(InvalidInputError, match=r"got ndarray of shape \(0, 3\)"):
        singular_values(X[:0])
    with pytest.raises(InvalidInputError, match="got list of shape"):
        singular_values([[1.0, 2.0]])
    with pytest.raises(UnknownNameError, match="Unknown centring 'features': did you mean 'feature'"):
        singular_values(X, center="features")
    with pytest.raises(InvalidInputError, match="chunk_size of at least 1 row, got 0"):
        singular_values(X, chunk_size=0)


def test_more_bad_matrices_are_named(tmp_path):
    with pytest.raises(InvalidInputError, match="Expected real numbers as features, got dtype complex128"):
        singular_values(np.ones((3, 2), dtype=complex))
    with pytest.raises(InvalidInputError, match=r"magnitude up to 1e\+300, got 1\.5e\+308 in row 2. Scale"):
        singular_values(np.array([[1.0], [2.0], [-1.5e308]]))


def test_a_private_memory_map_keeps_its_changes(tmp_path):
    np.ones((9000, 3)).tofile(tmp_path / "x")
    for mode in ("c", "r+"):
        X = np.memmap(tmp_path / "x", dtype=np.float64, mode=mode, shape=(9000, 3))
        X[:] = 2.0
        singular_values(X[3:], chunk_size=1000)
        assert (X == 2.0).all()


def accumulated(*chunks):
    accumulator = SpectrumAccumulator(chunks[0].shape[1])
    for chunk in chunks:
        accumulator.update(chunk)
    return accumulator


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 59), max_size=5, unique=True),
    order=st.randoms(use_true_random=False),
    kind=st.sampled_from(["well-conditioned", "large mean", "zero columns", "not negative"]),
    center=st.sampled_from(CENTERS),
)
def test_parts_merge_to_the_whole_in_any_split_and_order(cuts, order, kind, center):
    X = matrix(kind, 60, 10)
    parts = [accumulated(part) for part in np.split(X, sorted(cuts))] + [SpectrumAccumulator(10)]
    order.shuffle(parts)
    merged = SpectrumAccumulator(10)
    for part in parts:
        before = part.num_samples
        merged.merge(pickle.loads(pickle.dumps(part)))  # noqa: S301 (bytes made here)
        assert part.num_samples == before
    assert merged.num_samples == 60
    expected = np.linalg.svd(centred(X, center), compute_uv=False)
    try:
        actual = merged.singular_values(center=center)
    except PrecisionLossError:
        assert kind == "large mean" or (kind, center) == ("zero columns", "sample")
        return
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7 * expected[0] + 1e-14 * np.linalg.norm(X))


def test_merging_leaves_the_other_as_it_is():
    X = matrix("well-conditioned", 90, 8)
    first, second = accumulated(X[:50]), accumulated(X[50:])
    alone = second.singular_values()
    first.merge(second)
    first.update(X)
    np.testing.assert_array_equal(second.singular_values(), alone)


def test_one_state_serves_all_centrings_and_goes_on():
    X = matrix("well-conditioned", 300, 12) + 3.0
    accumulator = SpectrumAccumulator(12)
    for rows in (slice(0, 7), slice(7, 200), slice(200, 300)):
        accumulator.update(torch.from_numpy(X[rows]))
        seen = X[: rows.stop]
        for center in (*CENTERS, *CENTERS):
            expected = np.linalg.svd(centred(seen, center), compute_uv=False)
            values = accumulator.singular_values(center=center)
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * np.linalg.norm(X))
    assert accumulator.num_samples == 300


def test_accumulator_errors_say_what_to_do():
    accumulator = SpectrumAccumulator(5)
    with pytest.raises(InvalidInputError, match="at least one row, got none so far; call update first"):
        accumulator.singular_values()
    with pytest.raises(InvalidInputError, match="rows of 5 features, got 4"):
        accumulator.update(np.ones((3, 4)))
    with pytest.raises(InvalidInputError, match="rows of 5 features, got 4"):
        accumulator.merge(SpectrumAccumulator(4))
    with pytest.raises(InvalidInputError, match="num_features of at least 1, got 0"):
        SpectrumAccumulator(0)
    accumulator.update(matrix("well-conditioned", 10, 5))
    with pytest.raises(InvalidInputError, match="NaN or inf in row 12"):
        accumulator.update(np.vstack([np.ones((2, 5)), np.full((1, 5), np.inf)]))
    assert accumulator.num_samples == 10
    with pytest.raises(UnknownNameError, match="Unknown centring 'rows'"):
        accumulator.singular_values(center="rows")
    with pytest.raises(PrecisionLossError, match=r"of 400 rows that are lost in rounding. Call singular_values\(X\)"):
        accumulated(matrix("rank 5", 400, 48)).singular_values()


@pytest.mark.parametrize("as_container", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("center", CENTERS)
def test_groups_equal_each_alone(as_container, center):
    X = matrix("well-conditioned", 200, 12)
    groups = np.random.default_rng(1).choice(["a", "b", "c"], 200, p=[0.7, 0.26, 0.04])
    found = grouped_singular_values(as_container(X), groups, center=center)
    assert list(found) == ["a", "b", "c"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, singular_values(X[groups == name], center=center))


def test_group_keys_are_plain_values():
    found = grouped_singular_values(np.eye(4), np.array([7, -2, 7, 7]))
    assert {type(key) for key in found} == {int}
    assert list(found) == [-2, 7]


def test_bad_groups_are_named():
    X = np.ones((4, 2))
    with pytest.raises(InvalidInputError, match=r"one group per row, shape \(4,\), got shape \(3,\)"):
        grouped_singular_values(X, [1, 2, 3])
    with pytest.raises(InvalidInputError, match="a group for every row, got none for row 1"):
        grouped_singular_values(X, [1.0, math.nan, 1.0, 2.0])
    with pytest.raises(InvalidInputError, match="groups of one kind, got int and str"):
        grouped_singular_values(X, np.array([1, "a", 1, 1], dtype=object))
    X[2, 0] = np.nan
    with pytest.raises(InvalidInputError, match="NaN or inf in row 2"):
        grouped_singular_values(X, [1, 0, 0, 1])


def overlapping_subsets(num_samples):
    position = np.arange(num_samples)
    drawn = np.random.default_rng(3).random(num_samples)
    return {
        "all": position >= 0,
        "train": drawn < 0.7,
        "test": drawn >= 0.7,
        "domain": position % 3 == 1,
        "end": position >= num_samples - 30,
        "one": position == 600,
    }


@pytest.mark.parametrize("kind", ["well-conditioned", "large mean", "not negative", "decaying to 1e-12"])
def test_subsets_equal_a_float64_svd_of_their_rows(kind):
    X, subsets = matrix(kind, 1300, 24), overlapping_subsets(1300)
    found = spectra_of_subsets(X, subsets, centers=CENTERS)
    assert list(found) == [(name, center) for name in subsets for center in CENTERS]
    for (name, center), values in found.items():
        expected = np.linalg.svd(centred(X[subsets[name]], center), compute_uv=False)
        assert values.dtype == np.float64
        assert values.shape == expected.shape
        if name == "one":
            np.testing.assert_allclose(values, 0 if center == "feature" else expected, atol=1e-9)
        else:
            assert_contract(values, expected, scale=np.abs(X).max() * math.sqrt(X.size))


@pytest.mark.parametrize(
    "as_container", [np.asarray, torch.from_numpy, CountingRows, np.asfortranarray], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int16])
def test_subsets_equal_each_alone_to_the_bit(as_container, dtype):
    X, subsets = (20 * matrix("well-conditioned", 1300, 24)).astype(dtype), overlapping_subsets(1300)
    masks = {name: torch.from_numpy(mask) if name == "test" else mask.tolist() for name, mask in subsets.items()}
    for (name, center), values in spectra_of_subsets(as_container(X), masks, centers=CENTERS).items():
        np.testing.assert_array_equal(values, singular_values(X[subsets[name]], center=center))


def test_a_subset_reads_each_of_its_rows_once_and_no_other():
    rows, subsets = CountingRows(matrix("well-conditioned", 1300, 24)), overlapping_subsets(1300)
    spectra_of_subsets(rows, subsets, centers=CENTERS)
    np.testing.assert_array_equal(rows.reads, np.sum(list(subsets.values()), axis=0))
    rows = CountingRows(matrix("well-conditioned", 1300, 24))
    spectra_of_subsets(rows, {"end": np.arange(1300) >= 1024})
    assert rows.reads[:1024].sum() == 0
    np.testing.assert_array_equal(rows.reads[1024:], 1)


def test_only_the_subset_that_loses_precision_is_read_again():
    X, bad = matrix("well-conditioned", 900, 24), np.arange(900) % 3 == 0
    X[bad] = matrix("rank 5", 300, 24)
    rows = CountingRows(X)
    found = spectra_of_subsets(rows, {"good": ~bad, "bad": bad, "all": np.ones(900, bool)}, centers=["none", "feature"])
    np.testing.assert_array_equal(rows.reads, np.where(bad, 4, 2))  # once more for each of two centrings
    for (name, center), values in found.items():
        chosen = {"good": X[~bad], "bad": X[bad], "all": X}[name]
        assert_contract(values, np.linalg.svd(centred(chosen, center), compute_uv=False))


def test_bad_subsets_are_named():
    X = np.ones((600, 3))
    full = np.ones(600, bool)
    with pytest.raises(InvalidInputError, match="Expected at least one row in subset 'test', got none"):
        spectra_of_subsets(X, {"all": full, "test": ~full})
    with pytest.raises(InvalidInputError, match=r"mask of bool \(600,\) for subset 'few'.*got bool of shape \(5,\)"):
        spectra_of_subsets(X, {"few": full[:5]})
    with pytest.raises(InvalidInputError, match=r"for subset 'numbers'.*got int64 of shape \(600,\)"):
        spectra_of_subsets(X, {"numbers": np.arange(600)})
    with pytest.raises(UnknownNameError, match="Unknown centring 'features': did you mean 'feature'"):
        spectra_of_subsets(X, {"all": full}, centers=["none", "features"])
    X[[3, 555], 1] = np.nan
    later = np.arange(600) > 3
    with pytest.raises(InvalidInputError, match="NaN or inf in row 555"):
        spectra_of_subsets(X, {"later": later, "last": np.arange(600) == 599})
    found = spectra_of_subsets(X, {"before": np.arange(600) < 3})
    np.testing.assert_allclose(found["before", "none"], [3, 0, 0], atol=1e-12)
