"""Exchanged captions: exact counts, no fixed points, nested, decided by ids alone."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from nml_kit.errors import InvalidInputError
from nml_kit.noise import inject_caption_noise, inject_label_noise

ratios = st.floats(0, 1)
seeds = st.integers(0, 2**70)
few_texts = st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=24)


def exchangeable(captions: list[str], count: int) -> bool:
    """Whether some `count` captions can all change: no text in more than half of them (Hall's theorem)."""
    return sum(min(uses, count // 2) for uses in Counter(captions).values()) >= count


@settings(max_examples=200)
@given(few_texts, ratios, seeds)
def test_captions_are_exchanged_exactly_when_possible(captions, ratio, seed):
    count = math.floor(ratio * len(captions) + 0.5)
    if not exchangeable(captions, count):
        with pytest.raises(InvalidInputError, match=f"Expected {count} of {len(captions)} captions to exchange texts"):
            inject_caption_noise(captions, ratio, seed=seed)
        return
    noise = inject_caption_noise(captions, ratio, seed=seed)
    changed = noise.noisy != noise.clean
    assert changed.sum() == count
    assert np.array_equal(changed, noise.mask)
    assert noise.clean.tolist() == captions
    assert Counter(noise.noisy) == Counter(captions)
    assert np.array_equal(noise.clean[noise.source], noise.noisy)
    assert np.array_equal(np.sort(noise.source), np.arange(len(captions)))
    assert np.array_equal(noise.source != np.arange(len(captions)), noise.mask)
    assert noise.realised_ratio == count / len(captions)
    assert (noise.requested_ratio, noise.seed) == (ratio, seed)


@settings(max_examples=200)
@given(few_texts, seeds)
def test_captions_that_change_are_nested(captions, seed):
    masks = [
        inject_caption_noise(captions, count / len(captions), seed=seed).mask
        for count in range(len(captions) + 1)
        if exchangeable(captions, count)
    ]
    assert all(np.all(more[less]) for less, more in pairwise(masks))


@settings(max_examples=50)
@given(few_texts, ratios, st.randoms(use_true_random=False))
def test_captions_depend_on_ids_not_on_order(captions, ratio, random):
    assume(exchangeable(captions, math.floor(ratio * len(captions) + 0.5)))
    ids = np.array([f"pair {position}" for position in range(len(captions))])
    order = np.array(random.sample(range(len(captions)), len(captions)))
    noise = inject_caption_noise(captions, ratio, seed=1, ids=ids)
    shuffled = inject_caption_noise(np.array(captions)[order], ratio, seed=1, ids=ids[order])
    assert np.array_equal(noise.noisy[order], shuffled.noisy)
    assert np.array_equal(ids[noise.source][order], ids[order][shuffled.source])


def test_partners_are_random():
    """Among those that change, whose caption one gets is no matter of position."""
    noise = inject_caption_noise([f"text {position}" for position in range(20_000)], 0.5, seed=0)
    steps = (noise.source - np.arange(20_000))[noise.mask] % 20_000
    assert stats.kstest(steps / 20_000, "uniform").pvalue > 0.01


def test_label_and_caption_noise_of_one_seed_are_independent():
    labels = inject_label_noise(np.zeros(10_000, int), 0.5, num_classes=2, seed=0).mask
    captions = inject_caption_noise([str(position) for position in range(10_000)], 0.5, seed=0).mask
    assert np.mean(labels & captions) == pytest.approx(0.25, abs=0.02)


def test_a_pandas_column_is_exchanged_and_left_as_it_was():
    """The authors' swap wrote into a copy, so under a current pandas nothing changed."""
    column = pd.Series(["a", "b", "c", "d"], index=[3, 1, 0, 2])
    noise = inject_caption_noise(column, 1, seed=0)
    assert (noise.noisy != column.to_numpy()).all()
    assert column.tolist() == ["a", "b", "c", "d"]
    assert noise.noisy.tolist() == inject_caption_noise(["a", "b", "c", "d"], 1, seed=0).noisy.tolist()


@pytest.mark.parametrize(
    ("captions", "ratio", "message"),
    [
        (
            ["a", "b", "c"],
            0.4,
            "Expected 1 of 3 captions to exchange texts, at least two and no text in more than half",
        ),
        (
            ["a", "a", "a", "b"],
            1,
            "in more than half of them, got 'a' 3 times; change the ratio or drop repeated captions",
        ),
        (["a", None], 1, "Expected captions to be texts, got None at 1; drop or fill it"),
        ([["a"], ["b"]], 1, r"Expected captions to be texts of shape \(N,\), N ≥ 1, got shape \(2, 1\)"),
        ([], 0, r"Expected captions to be texts of shape \(N,\), N ≥ 1, got shape \(0,\)"),
        ("abc", 0, r"Expected captions to be texts of shape \(N,\), N ≥ 1, got shape \(\)"),
        (["a", "b"], 2, "Expected ratio to be a fraction from 0 to 1, got 2"),
    ],
)
def test_bad_captions_say_what_to_do(captions, ratio, message):
    with pytest.raises(InvalidInputError, match=message):
        inject_caption_noise(captions, ratio, seed=0)
