"""Noise: exact ratios, never the true class, nested, decided by ids alone, with the stated distribution."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.noise import inject_caption_noise, inject_label_noise

ratios = st.floats(0, 1)
seeds = st.integers(0, 2**70)


@st.composite
def labelled(draw):
    num_classes = draw(st.integers(2, 7))
    return draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=60)), num_classes


def random_transition(num_classes: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    matrix = generator.random((num_classes, num_classes)) + np.diag(generator.random(num_classes) * num_classes)
    return matrix / matrix.sum(axis=1, keepdims=True)


def kind_arguments(kind: str, num_classes: int, seed: int = 0) -> dict:
    return {"kind": kind} | ({"transition": random_transition(num_classes, seed)} if kind == "transition" else {})


every_kind = st.sampled_from(["uniform", "asymmetric", "transition"])


@settings(max_examples=50)
@given(labelled(), ratios, every_kind, seeds)
def test_exact_count_and_never_the_true_class(data, ratio, kind, seed):
    """The authors' code drew from all classes, so that K=2 at "50 %" changed only a quarter."""
    labels, num_classes = data
    noise = inject_label_noise(labels, ratio, num_classes=num_classes, seed=seed, **kind_arguments(kind, num_classes))
    expected = math.floor(ratio * len(labels) + 0.5)
    assert np.count_nonzero(noise.noisy != noise.clean) == noise.mask.sum() == expected
    assert noise.clean.tolist() == labels
    assert np.array_equal(noise.mask, noise.noisy != noise.clean)
    assert noise.noisy.min() >= 0
    assert noise.noisy.max() < num_classes
    assert noise.realised_ratio == expected / len(labels)
    assert (noise.requested_ratio, noise.kind, noise.seed) == (ratio, kind, seed)
    assert (noise.clean.dtype, noise.noisy.dtype, noise.mask.dtype) == (np.int64, np.int64, bool)
    np.testing.assert_allclose(noise.transition.sum(axis=1), 1)
    assert noise.transition.shape == (num_classes, num_classes)


@settings(max_examples=50)
@given(labelled(), ratios, ratios, every_kind, seeds)
def test_nested_in_the_ratio(data, one, other, kind, seed):
    labels, num_classes = data
    arguments = {"num_classes": num_classes, "seed": seed} | kind_arguments(kind, num_classes)
    less, more = (inject_label_noise(labels, ratio, **arguments) for ratio in sorted((one, other)))
    assert np.all(more.mask[less.mask])
    assert np.array_equal(more.noisy[less.mask], less.noisy[less.mask])


@settings(max_examples=50)
@given(labelled(), ratios, every_kind, st.randoms(use_true_random=False))
def test_depends_on_ids_not_on_order(data, ratio, kind, random):
    labels, num_classes = data
    ids = [f"image {position}" for position in range(len(labels))]
    order = random.sample(range(len(labels)), len(labels))
    arguments = {"num_classes": num_classes, "seed": 3} | kind_arguments(kind, num_classes)
    noise = inject_label_noise(labels, ratio, ids=ids, **arguments)
    shuffled = inject_label_noise(np.array(labels)[order], ratio, ids=np.array(ids, dtype=object)[order], **arguments)
    assert np.array_equal(noise.noisy[order], shuffled.noisy)
    np.testing.assert_allclose(noise.transition, shuffled.transition)


def test_same_seed_same_noise_other_seed_other_noise():
    labels = np.arange(1000) % 10
    first, again, other = (inject_label_noise(labels, 0.3, num_classes=10, seed=seed).noisy for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert 0.4 < np.mean(first != other) < 0.6  # 2 · 0.3 · 0.7 and both flipped, to other classes


def test_the_draw_never_changes():
    """Records must be reproducible on other machines and with later versions."""
    noise = inject_label_noise([0, 1, 2, 3] * 3, 0.5, num_classes=4, seed=7, ids=[f"s{i}" for i in range(12)])
    assert noise.noisy.tolist() == [3, 1, 2, 1, 0, 2, 2, 3, 1, 2, 0, 3]
    assert inject_caption_noise(list("abcdefgh"), 0.5, seed=7).source.tolist() == [5, 1, 2, 3, 0, 6, 4, 7]


def test_positions_are_the_default_ids_and_integers_equal_their_texts():
    labels = np.arange(50) % 5
    by_position, by_number, by_text = (
        inject_label_noise(labels, 0.3, num_classes=5, seed=0, ids=ids).noisy.tolist()
        for ids in (None, np.arange(50), [str(position) for position in range(50)])
    )
    assert by_position == by_number == by_text


def test_uniform_noise_is_uniform():
    """χ² over the K·(K−1) kinds of flips and over blocks of positions, at one fixed seed."""
    num_classes, count = 10, 200_000
    labels = np.arange(count) % num_classes
    noise = inject_label_noise(labels, 0.2, num_classes=num_classes, seed=0)
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels[noise.mask], noise.noisy[noise.mask]), 1)
    assert np.all(np.diag(confusion) == 0)
    assert stats.chisquare(confusion[~np.eye(num_classes, dtype=bool)]).pvalue > 0.01
    assert stats.chisquare(noise.mask.reshape(100, -1).sum(axis=1)).pvalue > 0.01
    neighbours = np.mean(noise.mask[1:] & noise.mask[:-1])
    assert neighbours == pytest.approx(0.04, abs=4 * math.sqrt(0.04 / count))


@pytest.mark.parametrize("ratio", [0.1, 0.35])
def test_transition_noise_follows_its_matrix(ratio):
    """Unequal classes: rows against T's odds, flips per class against the record's expected matrix."""
    generator = np.random.default_rng(0)
    labels = generator.choice(4, size=100_000, p=[0.5, 0.3, 0.15, 0.05])
    matrix = random_transition(4, 1)
    noise = inject_label_noise(labels, ratio, num_classes=4, kind="transition", transition=matrix, seed=0)
    for row in range(4):
        found = np.bincount(noise.noisy[labels == row], minlength=4)
        assert stats.chisquare(found, noise.transition[row] * found.sum()).pvalue > 0.01
        odds = np.delete(matrix[row], row) / (1 - matrix[row, row])
        np.testing.assert_allclose(np.delete(noise.transition[row], row) / (1 - noise.transition[row, row]), odds)
    share_flipped = 1 - np.diag(noise.transition)
    assert np.bincount(labels, minlength=4) @ share_flipped == pytest.approx(noise.mask.sum())
    assert np.array_equal(np.argsort(share_flipped), np.argsort(1 - np.diag(matrix)))


def test_transition_matrix_of_few_flips_has_the_odds_of_the_matrix():
    """Closed form: as the ratio goes to 0, classes are flipped in proportion to 1 − T_kk."""
    labels, matrix = np.arange(30_000) % 3, random_transition(3, 5)
    noise = inject_label_noise(labels, 0.0001, num_classes=3, kind="transition", transition=matrix, seed=0)
    odds = (1 - np.diag(noise.transition)) / (1 - np.diag(matrix))
    np.testing.assert_allclose(odds / odds.mean(), 1, rtol=2e-4)


def test_expected_transition_against_many_seeds():
    """Oracle: the mean confusion of 1000 draws of a small set."""
    labels, matrix = np.repeat([0, 1, 2], [40, 20, 10]), random_transition(3, 2)
    arguments = {"num_classes": 3, "kind": "transition", "transition": matrix}
    total = np.zeros((3, 3))
    for seed in range(1000):
        noise = inject_label_noise(labels, 0.4, seed=seed, **arguments)
        np.add.at(total, (labels, noise.noisy), 1)
    np.testing.assert_allclose(total / total.sum(axis=1, keepdims=True), noise.transition, atol=0.02)


@pytest.mark.parametrize("ratio", [0, 0.25, 1])
def test_closed_form_of_uniform_and_asymmetric_transition(ratio):
    labels = np.arange(40) % 4
    uniform = inject_label_noise(labels, ratio, num_classes=4, seed=0).transition
    np.testing.assert_allclose(uniform, np.full((4, 4), ratio / 3) + np.eye(4) * (1 - ratio - ratio / 3), atol=1e-15)
    following = inject_label_noise(labels, ratio, num_classes=4, kind="asymmetric", seed=0).transition
    np.testing.assert_allclose(following, np.eye(4) * (1 - ratio) + np.roll(np.eye(4), 1, axis=1) * ratio)


def test_asymmetric_noise_follows_its_map():
    labels = np.arange(60) % 6
    noise = inject_label_noise(labels, 0.3, num_classes=6, kind="asymmetric", class_map={0: 5, 3: 1}, seed=0)
    flips = set(zip(noise.clean[noise.mask].tolist(), noise.noisy[noise.mask].tolist(), strict=True))
    assert flips == {(0, 5), (3, 1)}
    np.testing.assert_allclose(noise.transition[[0, 3], [5, 1]], 0.9)  # 18 of the 20 labels that can change
    np.testing.assert_allclose(np.diag(noise.transition), [0.1, 1, 1, 0.1, 1, 1])
    following = inject_label_noise(labels, 1, num_classes=6, kind="asymmetric", seed=0)
    assert np.array_equal(following.noisy, (labels + 1) % 6)


def test_transition_may_keep_classes_and_forbid_targets():
    matrix = [[1, 0, 0], [0.5, 0, 0.5], [0, 0.2, 0.8]]
    labels = np.arange(300) % 3
    arguments = {"num_classes": 3, "kind": "transition", "transition": matrix, "seed": 0}
    noise = inject_label_noise(labels, 200 / 300, **arguments)
    assert np.array_equal(noise.mask, labels > 0)
    assert set(noise.noisy[labels == 2]) == {1}
    assert set(noise.noisy[labels == 1]) == {0, 2}
    np.testing.assert_allclose(noise.transition, [[1, 0, 0], [0.5, 0, 0.5], [0, 1, 0]])
    with pytest.raises(InvalidInputError, match=r"Expected at most 200 of 300 labels to change.*got ratio 0\.67, 201"):
        inject_label_noise(labels, 0.67, **arguments)


def test_records_do_not_share_memory_with_the_input():
    labels = np.array([0, 1, 0, 1])
    noise = inject_label_noise(labels, 0.5, num_classes=2, seed=0)
    labels[:] = 9
    assert noise.clean.tolist() == [0, 1, 0, 1]
    with pytest.raises(AttributeError):
        noise.clean = labels


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratio": -0.1}, "Expected ratio to be a fraction from 0 to 1, got -0.1; 10 % is 0.1"),
        ({"ratio": 1.1}, "Expected ratio to be a fraction from 0 to 1, got 1.1"),
        ({"ratio": float("nan")}, "Expected ratio to be a fraction from 0 to 1, got nan"),
        ({"ratio": "0.1"}, "Expected ratio to be a fraction from 0 to 1, got '0.1'"),
        ({"num_classes": 1}, "Expected num_classes to be an integer of at least 2, got 1"),
        ({"num_classes": 2.0}, "Expected num_classes to be an integer of at least 2, got 2.0"),
        ({"labels": [0, 3]}, r"Expected labels in 0\.\.2, got 0\.\.3; correct them or num_classes"),
        ({"labels": [-1, 2]}, r"Expected labels in 0\.\.2, got -1\.\.2"),
        ({"labels": [0.0, 1.0]}, r"Expected integer labels of shape \(N,\), N ≥ 1, got float64 of \(2,\)"),
        ({"labels": [[0, 1]]}, r"Expected integer labels of shape \(N,\), N ≥ 1, got int64 of \(1, 2\)"),
        ({"labels": []}, r"Expected integer labels of shape \(N,\), N ≥ 1, got float64 of \(0,\)"),
        ({"seed": 0.5}, "Expected seed to be an integer, got 0.5"),
        ({"seed": None}, "Expected seed to be an integer, got None"),
        ({"ids": ["a", "b", "a", "c"]}, "Expected unique ids, got 'a' 2 times; make ids unique"),
        ({"ids": ["a", "b"]}, r"Expected 4 ids, texts or integers, got shape \(2,\)"),
        ({"ids": [0.5, 1, 2, 3]}, r"Expected 4 ids, texts or integers, got shape \(4,\): \[0.5"),
        ({"class_map": {0: 1}}, "Expected class_map only with kind='asymmetric'.* got kind='uniform'"),
        ({"kind": "transition"}, "transition with and only with kind='transition', got kind='transition'"),
        ({"transition": np.eye(3)}, "transition with and only with kind='transition', got kind='uniform'"),
        (
            {"kind": "asymmetric", "class_map": {1: 1}},
            r"Expected class_map to send classes 0\.\.2 to others, got 1 → 1",
        ),
        ({"kind": "asymmetric", "class_map": {3: 1}}, "to others, got 3 → 1; leave out classes that stay as they are"),
        ({"kind": "asymmetric", "class_map": {1: -1}}, "to others, got 1 → -1"),
        ({"kind": "asymmetric", "class_map": {"a": 1}}, "to others, got 'a' → 1"),
        (
            {"kind": "asymmetric", "class_map": {1: 2}},
            "Expected at most 1 of 4 labels to change.*got ratio 0.5, 2 labels",
        ),
        (
            {"kind": "transition", "transition": np.eye(2)},
            r"Expected transition of shape \(3, 3\), got \(2, 2\)",
        ),
        (
            {"kind": "transition", "transition": np.ones((3, 3))},
            r"Expected probabilities with sum 1 in each row of transition, got 1\.0\.\.1\.0 with sum 3\.0 in row 0; ",
        ),
        (
            {"kind": "transition", "transition": [[1, 0, 0], [0, 1, 0], [2, -1, 0]]},
            r"Expected probabilities with sum 1 in each row of transition, got -1\.0\.\.2\.0 .* in row 2",
        ),
        (
            {"kind": "transition", "transition": [[1, 0, 0], [0, np.nan, 0], [0, 0, 1]]},
            "Expected probabilities with sum 1 in each row of transition, got nan",
        ),
        (
            {"kind": "transition", "transition": np.eye(3)},
            "Expected at most 0 of 4 labels to change, .* lower the ratio or let more classes change",
        ),
    ],
)
def test_bad_input_says_what_to_do(changed, message):
    arguments = {"labels": [0, 1, 2, 0], "ratio": 0.5, "num_classes": 3, "seed": 0} | changed
    with pytest.raises(InvalidInputError, match=message):
        inject_label_noise(**arguments)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Unknown noise kind 'asymetric': did you mean 'asymmetric'"):
        inject_label_noise([0, 1], 0.5, num_classes=2, kind="asymetric", seed=0)


def test_noise_needs_neither_pandas_nor_torch():
    modules = "nml_kit.noise.captions, nml_kit.noise.labels"
    code = f"import sys, {modules}; print('pandas' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "False False\n"
    )
