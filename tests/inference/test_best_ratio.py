"""The bootstrap of the best ratio: samples with a known optimum, ties, the null, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from nml_kit.errors import InvalidInputError
from nml_kit.inference import best_ratio_table, best_ratios, chance_of_established
from nml_kit.inference.intervals import probabilities_of_best


def frame(block: np.ndarray, ratios=(0.0, 0.1, 0.3), task="t", protocol="ID") -> pd.DataFrame:
    return pd.DataFrame([
        {"task": task, "protocol": protocol, "ratio": ratio, "seed": seed, "sample": f"s{n}", "correct": bool(value)}
        for ratio, rows in zip(ratios, block, strict=True)
        for seed, row in enumerate(rows)
        for n, value in enumerate(row)
    ])  # fmt: skip


def drawn(accuracies, seeds=5, samples=400, random_state=0) -> np.ndarray:
    generator = np.random.default_rng(random_state)
    return np.stack([generator.random((seeds, samples)) < accuracy for accuracy in accuracies]).astype(float)


def test_a_clear_optimum_is_found():
    table = best_ratio_table(frame(drawn([0.6, 0.8, 0.7])))
    assert table.groupby("task")["probability"].sum().tolist() == pytest.approx([1.0])
    (verdict,) = best_ratios(table).to_dict("records")
    assert (verdict["best"], verdict["candidates"], verdict["established"]) == (0.1, (0.1,), True)
    assert not verdict["includes_clean"]


def test_two_ratios_agree_with_the_normal_approximation_of_their_difference():
    block = drawn([0.70, 0.71], seeds=1, samples=2000, random_state=3)
    difference = (block[1] - block[0]).ravel()
    expected = norm.cdf(difference.mean() / (difference.std() / np.sqrt(difference.size)))
    assert probabilities_of_best(block, resamples=8000)[1] == pytest.approx(expected, abs=0.02)


def test_seeds_are_resampled_too():
    # Sample by sample ratio 1 is better in one seed and worse in the other: which seeds are drawn decides.
    block = np.stack([np.full((2, 100), 0.5), np.repeat([[0.0], [1.0]], 100, axis=1)])
    assert probabilities_of_best(block, resamples=4000) == pytest.approx([0.5, 0.5], abs=0.03)


def test_equal_ratios_share_the_probability_equally_and_the_same_samples_give_the_same():
    block = np.repeat(drawn([0.7]), 4, axis=0)
    assert probabilities_of_best(block).tolist() == [0.25] * 4
    block = drawn([0.7, 0.7])
    np.testing.assert_array_equal(probabilities_of_best(block), probabilities_of_best(block))


def test_under_the_null_every_ratio_is_best_equally_often():
    mean = np.mean([probabilities_of_best(drawn([0.7] * 4, 3, 150, s), resamples=200) for s in range(150)], axis=0)
    assert mean == pytest.approx([0.25] * 4, abs=0.07)


def test_chance_of_established_is_high_only_for_seeds_that_agree_by_chance():
    null = pd.concat([frame(drawn([0.7] * 3, 5, 200, s), task=f"t{s}") for s in range(6)])
    assert chance_of_established(null, shuffles=5) < 0.4
    # One network far above the others makes its ratio the best, wherever its label goes.
    outlier = drawn([0.2, 0.2, 0.9], seeds=1)
    assert chance_of_established(frame(outlier), shuffles=5) == 1.0


def test_the_order_of_rows_and_the_random_baseline_do_not_matter():
    samples = frame(drawn([0.6, 0.65, 0.7]))
    random = frame(drawn([0.99]), ratios=[np.nan])
    mixed = pd.concat([samples, random]).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(best_ratio_table(mixed), best_ratio_table(samples))


def test_incomplete_scores_are_refused():
    samples = frame(drawn([0.6, 0.7, 0.8], seeds=2, samples=10))
    with pytest.raises(InvalidInputError, match="same seeds and samples, but some are missing"):
        best_ratio_table(samples.iloc[1:])
    with pytest.raises(InvalidInputError, match="missing: correct"):
        best_ratio_table(samples.drop(columns="correct"))
    with pytest.raises(InvalidInputError, match="trained networks expected at least one row"):
        best_ratio_table(samples.assign(ratio=np.nan))
